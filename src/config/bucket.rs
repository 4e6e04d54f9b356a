//! Location of a cache in a bucket, in the URL syntax of Nix's own `s3://` store.

use std::fmt;
use std::time::Duration;

use super::parse::parse_duration;

/// `s3://bucket[/prefix]?endpoint=…&region=…&scheme=…&profile=…&addressing-style=…`, as Nix parses it
/// (`src/libstore/s3-url.cc`), with the additional option `abandoned-after`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Name of the bucket.
    pub name: String,
    /// Prefix of all keys, without leading and trailing slashes; may be empty.
    pub prefix: String,
    /// URL of the server; `None` for Amazon S3.
    pub endpoint: Option<String>,
    /// Region; `None`: taken from the environment or the profile.
    pub region: Option<String>,
    /// Profile in `~/.aws` with the credentials.
    pub profile: Option<String>,
    /// Whether the name of the bucket is a part of the host name.
    pub virtual_hosted: bool,
    /// Age after which an unfinished multipart upload counts as abandoned.
    pub abandoned_after: Duration,
}

/// Error for a URL with an `@`. Such a URL is never quoted.
const HAS_CREDENTIALS: &str = "contains “@”, so it may contain credentials; remove them from the URL, and \
                               set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile";

impl Bucket {
    /// Longer than any upload takes: 100 GB at 10 Mbit/s.
    const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

    /// Whether `auto` means virtual-hosted, as in Nix: not with an endpoint, because self-hosted servers
    /// rarely have a host name for each bucket, and not if the bucket name has a dot.
    fn auto_style(&self) -> bool {
        self.endpoint.is_none() && !self.name.contains('.')
    }

    /// Parses the URL after `s3://`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // Checked first, because other errors quote parts of the text, which may contain a password.
        if text.contains('@') || text.contains("%40") {
            return Err(HAS_CREDENTIALS.to_owned());
        }
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if name.is_empty() || !name.chars().all(fits) {
            return Err("has no valid bucket name after “s3://”".to_owned());
        }
        let prefix = decoded(prefix.trim_matches('/'))?;
        if prefix.split('/').any(|part| [".", ".."].contains(&part) || part.contains("//")) {
            return Err("has an invalid prefix".to_owned());
        }
        let mut bucket = Self {
            name: name.to_owned(),
            prefix,
            endpoint: None,
            region: None,
            profile: None,
            virtual_hosted: false,
            abandoned_after: Self::ABANDONED_AFTER,
        };
        let (mut scheme, mut style) = ("https".to_owned(), "auto".to_owned());
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let value = decoded(value)?;
            match key {
                "endpoint" => bucket.endpoint = Some(value).filter(|value| !value.is_empty()),
                "region" => bucket.region = Some(value),
                "profile" => bucket.profile = Some(value),
                "scheme" if ["http", "https"].contains(&value.as_str()) => scheme = value,
                "scheme" => return Err("has a scheme that is neither http nor https".to_owned()),
                "addressing-style" => style = value,
                "abandoned-after" => {
                    let time = parse_duration(&value);
                    bucket.abandoned_after =
                        time.map_err(|why| format!("has the option abandoned-after, which {why}"))?;
                }
                _ => {
                    return Err(format!(
                        "has the unknown option “{key}”; known options are endpoint, region, scheme, \
                         profile, addressing-style and abandoned-after"
                    ));
                }
            }
        }
        bucket.virtual_hosted = match style.as_str() {
            "virtual" => true,
            "path" => false,
            "auto" => bucket.auto_style(),
            _ => return Err("has an addressing-style that is not auto, path or virtual".to_owned()),
        };
        if let Some(endpoint) = &mut bucket.endpoint
            && !endpoint.contains("://")
        {
            *endpoint = format!("{scheme}://{endpoint}");
        }
        Ok(bucket)
    }
}

/// Characters to percent-encode in a URL.
const RESERVED: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'%').add(b'&').add(b'?').add(b'#').add(b'+');

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_encoding::percent_decode_str(text).decode_utf8();
    text.map(std::borrow::Cow::into_owned).map_err(|_| "is not UTF-8".to_owned())
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| percent_encoding::utf8_percent_encode(text, RESERVED);
        write!(f, "s3://{}", self.name)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", encoded(&self.prefix))?;
        }
        let style = if self.virtual_hosted { "virtual" } else { "path" };
        let age = format!("{}s", self.abandoned_after.as_secs());
        let options = [
            ("endpoint", self.endpoint.as_deref()),
            ("region", self.region.as_deref()),
            ("profile", self.profile.as_deref()),
            ("addressing-style", Some(style).filter(|_| self.virtual_hosted != self.auto_style())),
            (
                "abandoned-after",
                Some(age.as_str()).filter(|_| self.abandoned_after != Self::ABANDONED_AFTER),
            ),
        ];
        let options = options.into_iter().filter_map(|(key, value)| Some((key, value?)));
        for (place, (key, value)) in options.enumerate() {
            let mark = if place == 0 { '?' } else { '&' };
            write!(f, "{mark}{key}={}", encoded(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Bucket, String> {
        Bucket::parse(text.strip_prefix("s3://").unwrap())
    }

    fn bucket(text: &str) -> Bucket {
        parse(text).unwrap()
    }

    #[test]
    fn bucket_urls_are_parsed_as_nix_parses_them() {
        let bucket =
            bucket("s3://cache/a/b/?endpoint=127.0.0.1:3900&scheme=http&region=garage&profile=x");
        assert_eq!(bucket.name, "cache");
        assert_eq!(bucket.prefix, "a/b");
        assert_eq!(bucket.endpoint.as_deref(), Some("http://127.0.0.1:3900"));
        assert_eq!(bucket.region.as_deref(), Some("garage"));
        assert_eq!(bucket.profile.as_deref(), Some("x"));
        assert!(!bucket.virtual_hosted);
    }

    #[test]
    fn a_bucket_is_printed_as_it_was_parsed() {
        for text in [
            "s3://cache",
            "s3://cache/a%20b?endpoint=http://127.0.0.1:3900&region=garage&profile=x",
            "s3://c.d?addressing-style=virtual",
            "s3://c?endpoint=https://h&addressing-style=virtual&abandoned-after=5s",
        ] {
            assert_eq!(bucket(text).to_string(), text);
        }
    }

    #[test]
    fn an_endpoint_may_contain_a_scheme() {
        let endpoint = |text| bucket(text).endpoint.unwrap();
        assert_eq!(endpoint("s3://c?endpoint=http%3A%2F%2Fh%3A1"), "http://h:1");
        assert_eq!(endpoint("s3://c?endpoint=https://h"), "https://h");
        assert_eq!(endpoint("s3://c?endpoint=h"), "https://h");
    }

    #[test]
    fn the_bucket_is_in_the_host_name_when_nix_puts_it_there() {
        assert!(bucket("s3://c").virtual_hosted);
        assert!(!bucket("s3://c.d").virtual_hosted);
        assert!(!bucket("s3://c?addressing-style=path").virtual_hosted);
        assert!(bucket("s3://c?endpoint=h&addressing-style=virtual").virtual_hosted);
    }

    #[test]
    fn errors_say_what_is_wrong_with_the_url() {
        for (text, why) in [
            ("s3://", "no valid bucket name"),
            ("s3:///prefix", "no valid bucket name"),
            ("s3://a b", "no valid bucket name"),
            ("s3://c/../d", "invalid prefix"),
            ("s3://c?compression=xz", "“compression”"),
            ("s3://c?scheme=ftp", "neither http nor https"),
            ("s3://c?addressing-style=x", "addressing-style"),
            ("s3://c?abandoned-after=soon", "abandoned-after"),
            ("s3://c?region=%ff", "UTF-8"),
        ] {
            let why_not = parse(text).unwrap_err();
            assert!(why_not.contains(why), "{text}: {why_not}");
        }
    }
}
