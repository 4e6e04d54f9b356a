//! Upstream caches: `NIX_STORED_UPSTREAMS`, with options as URL parameters, as in Nix's store URLs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::{Proxy, Url};

use super::netrc::{Login, Netrc, NetrcMatch};
use super::parse::parse_duration;
use super::values::{Values, without_secrets};
use crate::nix::PublicKey;

/// The upstream caches, and how long their responses are remembered.
#[derive(Debug, Clone, Default)]
pub struct Upstreams {
    /// The upstreams, in the order of requests.
    pub list: Vec<Upstream>,
    /// Time for which a path that no upstream has is remembered as absent.
    pub absent_ttl: Duration,
    /// Time for which a narinfo from an upstream is remembered.
    pub present_ttl: Duration,
}

/// An upstream cache.
#[derive(Clone)]
pub struct Upstream {
    /// URL without credentials and options, with a trailing slash.
    pub url: Url,
    /// User and password, from the URL or the netrc file.
    pub login: Option<Login>,
    /// Whether the netrc file has an entry for the host, but without a password.
    pub lacks_password: bool,
    /// Proxy for this upstream: an `http`, `https`, `socks5` or `socks5h` URL.
    pub proxy: Option<Url>,
    /// If not empty, every narinfo of this upstream needs a valid signature by one of these keys.
    pub trusted_public_keys: Vec<PublicKey>,
    /// Maximum time until a response starts.
    pub timeout: Duration,
    /// Whether objects of this upstream are stored.
    pub store: bool,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL of the proxy may contain a password.
        f.debug_struct("Upstream").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

/// Default of the option `timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The variable with the netrc file.
const NETRC: &str = "NIX_STORED_UPSTREAM_NETRC";

impl Upstreams {
    /// Reads the upstreams in the variable `name`, with passwords from the netrc file.
    pub(super) fn read_list(values: &mut Values, name: &str) -> Vec<Upstream> {
        let path = values.get(NETRC).map(str::to_owned);
        let netrc = match path.map(|path| (std::fs::read_to_string(&path), path)) {
            None => Netrc::default(),
            Some((Ok(text), _)) => Netrc::parse(&text),
            Some((Err(error), path)) => {
                values.problem(NETRC, format!("cannot read “{path}”: {error}"));
                Netrc::default()
            }
        };
        let urls = values.get(name).unwrap_or_default().to_owned();
        let mut list = Vec::new();
        for url in urls.split_whitespace() {
            match Upstream::parse(url, &netrc) {
                Ok(upstream) => list.push(upstream),
                // The URL may contain a password.
                Err(why) => values.invalid(name, &without_secrets(url), &why),
            }
        }
        list
    }

    /// The URL of each upstream, with the keys that verify its narinfos.
    pub(super) fn keys(&self) -> Vec<(String, Vec<PublicKey>)> {
        let keys = |it: &Upstream| (it.to_string(), it.trusted_public_keys.clone());
        self.list.iter().map(keys).collect()
    }
}

impl Upstream {
    /// Parses a URL with options. If the URL has no credentials, they are taken from `netrc`.
    fn parse(text: &str, netrc: &Netrc) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => {}
            "file" if url.to_file_path().is_ok() => {}
            _ => return Err("is not an http, https or file URL".to_owned()),
        }
        if url.fragment().is_some() {
            return Err("has a fragment (#…); remove it".to_owned());
        }
        let found = match (take_login(&mut url)?, url.host_str()) {
            (Some(login), _) => NetrcMatch::Login(login),
            (None, Some(host)) => netrc.find(host),
            (None, None) => NetrcMatch::Nothing,
        };
        let lacks_password = found == NetrcMatch::NoPassword;
        let login = match found {
            NetrcMatch::Login(login) => Some(login),
            NetrcMatch::NoPassword | NetrcMatch::Nothing => None,
        };
        let options = url.query().unwrap_or_default().to_owned();
        url.set_query(None);
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let mut upstream = Self {
            url,
            login,
            lacks_password,
            proxy: None,
            trusted_public_keys: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            store: true,
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            // As in Nix, `+` does not mean a space: keys in base64 contain it.
            let value = percent_decode_str(value).decode_utf8_lossy();
            upstream.set(name, &value)?;
        }
        Ok(upstream)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "proxy" => {
                let proxy = Url::parse(value).map_err(|_| "has a proxy that is not a URL")?;
                if !["http", "https", "socks5", "socks5h"].contains(&proxy.scheme()) {
                    return Err("has a proxy that is not http, https, socks5 or socks5h".to_owned());
                }
                Proxy::all(proxy.clone()).map_err(|_| "has an invalid proxy")?;
                self.proxy = Some(proxy);
            }
            "trusted-public-keys" => {
                for key in value.split([' ', ',']).filter(|key| !key.is_empty()) {
                    let key =
                        key.parse().map_err(|_| format!("has the invalid public key “{key}”"))?;
                    self.trusted_public_keys.push(key);
                }
                if self.trusted_public_keys.is_empty() {
                    return Err(
                        "has an option trusted-public-keys without a key, which would turn off \
                                signature checks; remove the option if you want that"
                            .to_owned(),
                    );
                }
            }
            "timeout" => {
                self.timeout = parse_duration(value)
                    .map_err(|why| format!("has the timeout “{value}”, which {why}"))?;
            }
            "store" => {
                self.store = match value {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => return Err("has an option store that is neither 1 nor 0".to_owned()),
                };
            }
            _ => {
                return Err(format!(
                    "has the unknown option “{name}”; known options are proxy, trusted-public-keys, \
                     timeout and store"
                ));
            }
        }
        Ok(())
    }

    /// The upstream with all options in the syntax of the variable, with passwords masked.
    pub fn masked(&self) -> String {
        let mut url = self.url.clone();
        if let Some(login) = &self.login {
            // Cannot fail: a URL that had credentials has a host.
            let _ = url.set_username(&login.user).and_then(|()| url.set_password(Some("***")));
        }
        let mut options = Vec::new();
        if let Some(proxy) = &self.proxy {
            let mut proxy = proxy.clone();
            if proxy.password().is_some() {
                let _ = proxy.set_password(Some("***"));
            }
            options.push(format!("proxy={}", proxy.as_str().trim_end_matches('/')));
        }
        if !self.trusted_public_keys.is_empty() {
            let keys: Vec<String> =
                self.trusted_public_keys.iter().map(ToString::to_string).collect();
            options.push(format!("trusted-public-keys={}", keys.join(",")));
        }
        options.push(format!("timeout={}s", self.timeout.as_secs()));
        options.push(format!("store={}", u8::from(self.store)));
        format!("{}?{}", url.as_str().trim_end_matches('/'), options.join("&"))
    }

    /// The directory of a `file://` upstream.
    pub fn directory(&self) -> Option<PathBuf> {
        self.url.to_file_path().ok().filter(|_| self.url.scheme() == "file")
    }
}

/// Removes user and password from a URL, because the URL is logged.
fn take_login(url: &mut Url) -> Result<Option<Login>, String> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let login = match (url.username(), url.password()) {
        ("", None) => return Ok(None),
        (user, Some(password)) if !user.is_empty() => {
            Login { user: decoded(user), password: decoded(password) }
        }
        _ => return Err("has a user without a password, or a password without a user".to_owned()),
    };
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    cleared.map_err(|()| "cannot contain a user".to_owned())?;
    Ok(Some(login))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Upstream, String> {
        Upstream::parse(text, &Netrc::parse("machine cache.example.org login me password it\n"))
    }

    #[test]
    fn options_are_parameters_of_the_url() {
        let key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let upstream = parse(&format!(
            "https://a%40b:p%3Aw@cache.nixos.org/x?proxy=socks5h://127.0.0.1:1080&timeout=3s&store=0\
             &trusted-public-keys={key}%20{key}"
        ))
        .unwrap();
        assert_eq!(upstream.url.as_str(), "https://cache.nixos.org/x/");
        let login = upstream.login.clone().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("a@b", "p:w"));
        assert_eq!(upstream.proxy.unwrap().as_str(), "socks5h://127.0.0.1:1080");
        assert_eq!(upstream.trusted_public_keys.len(), 2);
        assert_eq!(upstream.timeout, Duration::from_secs(3));
        assert!(!upstream.store);
    }

    #[test]
    fn a_netrc_file_provides_the_password() {
        let upstream = parse("http://cache.example.org:8100").unwrap();
        assert_eq!(upstream.login.unwrap().password, "it");
        assert!(parse("http://another.example.org").unwrap().login.is_none());
    }

    #[test]
    fn display_and_debug_contain_no_password() {
        let upstream = parse("http://me:secret@x?proxy=http://me:secret@y").unwrap();
        let printed = format!("{upstream} {upstream:?} {:?}", upstream.login);
        assert!(!printed.contains("secret"), "{printed}");
    }

    #[test]
    fn errors_say_what_is_wrong_with_the_url() {
        for (text, part) in [
            ("cache.nixos.org", "is not a URL"),
            ("ftp://x", "is not an http, https or file URL"),
            ("s3://x", "is not an http, https or file URL"),
            ("https://x?priority=3", "the unknown option “priority”"),
            ("https://x?proxy=ftp://x", "a proxy that is not http"),
            ("https://x?timeout=soon", "the timeout “soon”"),
            ("https://x?trusted-public-keys=key", "the invalid public key “key”"),
            ("https://x?store=perhaps", "neither 1 nor 0"),
            ("https://me@x", "a user without a password"),
            ("https://x#y", "a fragment"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        assert_eq!(
            parse("file:///var/cache").unwrap().directory().unwrap(),
            PathBuf::from("/var/cache/")
        );
    }
}
