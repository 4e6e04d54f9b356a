//! The table of all variables.
//!
//! A new variable is a new row. From the rows follow parsing, the hints for unknown names, the output of
//! `check-config`, the table in the README, and the man page.

use super::access::{Credentials, Writers};
use super::parse::{
    parse_duration, parse_number, parse_size, parse_switch, show_duration, show_size, show_switch,
};
use super::setting::{Feature, Parse, Setting, Show};
#[cfg(feature = "tls")]
use super::tls::Tls;
#[cfg(feature = "upstream")]
use super::upstream::{Upstream, Upstreams};

/// All variables, in the order of the README, and of the output of `check-config`.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "NIX_STORED_PATH",
        default: Some("/var/lib/nixStored"),
        example: "/var/lib/nixStored",
        doc: "directory of the cache, or a bucket: `s3://bucket?endpoint=…&region=…`",
        parse: Parse::Text(|config, text| set(&mut config.location, text.parse())),
        show: Show::Value(|config| Some(config.location.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_LISTEN_INTERFACE",
        default: Some("127.0.0.1:8100"),
        example: "127.0.0.1:8100",
        doc: "address to listen on: `host:port`, `[v6]:port`, `unix:/path` or `unix:/path?mode=0660`; \
              ignored if systemd passes sockets",
        parse: Parse::Text(|config, text| set(&mut config.listen, text.parse())),
        show: Show::Value(|config| Some(config.listen.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_USER_READ",
        example: "reader",
        doc: "user that may read; unset: anyone may read",
        parse: Parse::Group(|config, values| {
            config.users.read = Credentials::read(values, "NIX_STORED_USER_READ");
        }),
        show: Show::Value(|config| config.users.read.as_ref().map(|user| user.user().to_owned())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_USER_READ_PASS",
        example: "a long password",
        doc: "password of the read user",
        parse: Parse::InGroup,
        show: Show::Secret(|config| config.users.read.is_some()),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_USER_READ_PASSFILE",
        example: "/run/keys/read-pass",
        doc: "file that contains the password of the read user",
        parse: Parse::InGroup,
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_USER_WRITE",
        example: "builder",
        doc: "user that may upload and read",
        parse: Parse::Group(|config, values| {
            config.users.write = Credentials::read(values, "NIX_STORED_USER_WRITE");
        }),
        show: Show::Value(|config| config.users.write.as_ref().map(|user| user.user().to_owned())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_USER_WRITE_PASS",
        example: "a long password",
        doc: "password of the write user",
        parse: Parse::InGroup,
        show: Show::Secret(|config| config.users.write.is_some()),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_USER_WRITE_PASSFILE",
        example: "/run/keys/write-pass",
        doc: "file that contains the password of the write user",
        parse: Parse::InGroup,
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_ANONYMOUS_WRITE",
        example: "1",
        doc: "uploads without credentials, if no write user is set: `1` allows them from anywhere, `0` \
              refuses them; unset: allowed only from this machine, not through a proxy, and only if no \
              users are configured",
        parse: Parse::Text(|config, text| {
            let writers = |on| if on { Writers::Anyone } else { Writers::Nobody };
            set(&mut config.users.anonymous, parse_switch(text).map(writers))
        }),
        show: Show::Value(|config| match config.users.anonymous {
            Writers::LocalOnly => None,
            Writers::Anyone => Some(show_switch(true)),
            Writers::Nobody => Some(show_switch(false)),
        }),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_TRUSTED_PUBLIC_KEYS",
        example: "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
        doc: "public keys, separated by spaces, as `nix key convert-secret-to-public` prints them; if \
              set, every uploaded narinfo needs a valid signature by one of them",
        if_empty: Some(
            "contains no key, which would turn off signature checks; unset the variable if you want that",
        ),
        parse: Parse::List(|config, text| {
            let key = text.parse().map_err(|_| {
                "is not a public key as `nix key convert-secret-to-public` prints it".to_owned()
            })?;
            config.admission.trusted_public_keys.push(key);
            Ok(())
        }),
        show: Show::Value(|config| {
            list(&config.admission.trusted_public_keys, ToString::to_string)
        }),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_VERIFY",
        default: Some("nar"),
        example: "nar",
        doc: "verification of uploads: `nar` unpacks every NAR and compares it with its narinfo, `file` \
              checks only hash and size of the file",
        parse: Parse::Text(|config, text| set(&mut config.admission.verify, text.parse())),
        show: Show::Value(|config| Some(config.admission.verify.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_REQUIRE_REFERENCES",
        default: Some("0"),
        example: "1",
        doc: "`1` refuses a path unless all its references are in the cache",
        parse: Parse::Text(|config, text| {
            set(&mut config.admission.require_references, parse_switch(text))
        }),
        show: Show::Value(|config| Some(show_switch(config.admission.require_references))),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_MAX_UPLOAD_SIZE",
        example: "20G",
        doc: "maximum size of one upload, such as `20G`; suffixes `K`, `M`, `G` and `T` are powers of 1024",
        parse: Parse::Text(|config, text| {
            set(&mut config.admission.max_upload_size, parse_size(text).map(Some))
        }),
        show: Show::Value(|config| config.admission.max_upload_size.map(show_size)),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_MIN_FREE_SPACE",
        default: Some("0"),
        example: "2G",
        doc: "free disk space that uploads must leave",
        parse: Parse::Text(|config, text| set(&mut config.min_free_space, parse_size(text))),
        show: Show::Value(|config| Some(show_size(config.min_free_space))),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_MAX_SIZE",
        example: "200G",
        doc: "maximum size of the cache; above it, least recently used paths are removed until the cache \
              is at 90 %",
        parse: Parse::Text(|config, text| {
            set(&mut config.retention.max_size, parse_size(text).map(Some))
        }),
        show: Show::Value(|config| config.retention.max_size.map(show_size)),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_MAX_AGE",
        example: "90d",
        doc: "maximum time without use, such as `30d` or `12h`; paths unused for longer are removed",
        parse: Parse::Text(|config, text| {
            set(&mut config.retention.max_age, parse_duration(text).map(Some))
        }),
        show: Show::Value(|config| config.retention.max_age.map(show_duration)),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_GC_INTERVAL",
        default: Some("1h"),
        example: "1h",
        doc: "interval between garbage collections",
        parse: Parse::Text(|config, text| {
            set(&mut config.retention.gc_interval, parse_duration(text))
        }),
        show: Show::Value(|config| Some(show_duration(config.retention.gc_interval))),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_S3_REDIRECT",
        default: Some("0"),
        example: "1",
        doc: "`1` redirects clients to the bucket for NARs, with presigned URLs",
        feature: Some(Feature::S3),
        #[cfg(feature = "s3")]
        parse: Parse::Text(|config, text| set(&mut config.s3_redirect, parse_switch(text))),
        #[cfg(feature = "s3")]
        show: Show::Value(|config| Some(show_switch(config.s3_redirect))),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_UPSTREAMS",
        example: "https://cache.nixos.org",
        doc: "URLs of upstream caches, separated by spaces; objects that are missing here are requested \
              from them in this order, and stored",
        feature: Some(Feature::Upstream),
        #[cfg(feature = "upstream")]
        parse: Parse::Group(|config, values| {
            config.upstreams.list = Upstreams::read_list(values, "NIX_STORED_UPSTREAMS");
            config.admission.upstream_keys = config.upstreams.keys();
        }),
        #[cfg(feature = "upstream")]
        show: Show::Value(|config| list(&config.upstreams.list, Upstream::masked)),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_UPSTREAM_NETRC",
        example: "/run/keys/netrc",
        doc: "netrc file with the passwords for the upstreams",
        feature: Some(Feature::Upstream),
        parse: Parse::InGroup,
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_UPSTREAM_ABSENT_TTL",
        default: Some("60s"),
        example: "60s",
        doc: "time for which a path that no upstream has is remembered as absent",
        feature: Some(Feature::Upstream),
        #[cfg(feature = "upstream")]
        parse: Parse::Text(|config, text| {
            set(&mut config.upstreams.absent_ttl, parse_duration(text))
        }),
        #[cfg(feature = "upstream")]
        show: Show::Value(|config| Some(show_duration(config.upstreams.absent_ttl))),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_UPSTREAM_PRESENT_TTL",
        default: Some("1h"),
        example: "1h",
        doc: "time for which a narinfo from an upstream is remembered",
        feature: Some(Feature::Upstream),
        #[cfg(feature = "upstream")]
        parse: Parse::Text(|config, text| {
            set(&mut config.upstreams.present_ttl, parse_duration(text))
        }),
        #[cfg(feature = "upstream")]
        show: Show::Value(|config| Some(show_duration(config.upstreams.present_ttl))),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_TLS_CERT",
        example: "/run/keys/cert.pem",
        doc: "PEM file with the certificate chain; if set, every socket serves HTTPS, with HTTP/2",
        feature: Some(Feature::Tls),
        #[cfg(feature = "tls")]
        parse: Parse::Group(|config, values| {
            config.tls = Tls::read(values);
            config.users.certificates = values.get("NIX_STORED_TLS_CLIENT_CA").is_some();
        }),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_TLS_KEY",
        example: "/run/keys/key.pem",
        doc: "PEM file with the key of the certificate",
        feature: Some(Feature::Tls),
        parse: Parse::InGroup,
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_TLS_CLIENT_CA",
        example: "/run/keys/builders-ca.pem",
        doc: "PEM file with a CA; clients with a certificate signed by this CA may read and upload",
        feature: Some(Feature::Tls),
        parse: Parse::InGroup,
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_LOG_LEVEL",
        default: Some("info"),
        example: "info",
        doc: "minimum level of log messages: `error`, `warn`, `info`, `debug` (includes every request) or \
              `trace`",
        parse: Parse::Text(|config, text| set(&mut config.log_level, text.parse())),
        show: Show::Value(|config| Some(config.log_level.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_LOG_FORMAT",
        default: Some("text"),
        example: "json",
        doc: "format of the log: `text` or `json`",
        parse: Parse::Text(|config, text| set(&mut config.log_format, text.parse())),
        show: Show::Value(|config| Some(config.log_format.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_STORE_DIR",
        default: Some("/nix/store"),
        example: "/nix/store",
        doc: "store directory of all paths in the cache",
        parse: Parse::Text(|config, text| {
            let why = "is not an absolute path without a trailing “/”";
            set(&mut config.cache_info.store_dir, text.parse().map_err(|_| why))
        }),
        show: Show::Value(|config| Some(config.cache_info.store_dir.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_PRIORITY",
        default: Some("30"),
        example: "30",
        doc: "priority in `nix-cache-info`; clients query caches with lower numbers first, and \
              cache.nixos.org has 40",
        parse: Parse::Text(|config, text| set(&mut config.cache_info.priority, parse_number(text))),
        show: Show::Value(|config| Some(config.cache_info.priority.to_string())),
        ..Setting::BASE
    },
    Setting {
        name: "NIX_STORED_WANT_MASS_QUERY",
        default: Some("1"),
        example: "1",
        doc: "`WantMassQuery` in `nix-cache-info`: whether clients may query many paths at once",
        parse: Parse::Text(|config, text| {
            set(&mut config.cache_info.want_mass_query, parse_switch(text))
        }),
        show: Show::Value(|config| Some(show_switch(config.cache_info.want_mass_query))),
        ..Setting::BASE
    },
];

/// Sets `field` to the parsed value, or returns the reason why the text is invalid.
fn set<T>(field: &mut T, parsed: Result<T, impl Into<String>>) -> Result<(), String> {
    *field = parsed.map_err(Into::into)?;
    Ok(())
}

/// The items of a list, separated by spaces; `None` if the list is empty.
fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> Option<String> {
    let items: Vec<String> = items.iter().map(show).collect();
    (!items.is_empty()).then(|| items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_a_group_stands_below_the_group() {
        for rows in SETTINGS.windows(2).filter(|rows| matches!(rows[1].parse, Parse::InGroup)) {
            let [above, member] = rows else { panic!("windows of two") };
            let is_below = matches!(above.parse, Parse::Group(_) | Parse::InGroup);
            assert!(is_below || !member.is_supported(), "{} is below no group", member.name);
            assert_eq!(above.feature, member.feature, "{}", member.name);
        }
    }

    #[test]
    fn every_row_has_a_name_an_example_and_a_meaning() {
        for setting in SETTINGS {
            assert!(setting.name.starts_with("NIX_STORED_"), "{setting:?}");
            assert!(!setting.example.is_empty() && !setting.doc.is_empty(), "{setting:?}");
            assert!(
                !setting.doc.contains(['|', '\n']),
                "a cell of the README's table: {setting:?}"
            );
            let rows = SETTINGS.iter().filter(|row| row.name == setting.name);
            assert_eq!(rows.count(), 1, "{}", setting.name);
        }
    }
}
