//! Parses the `NIX_STORED_*` variables into a [`Config`], and reports all errors at once.
//!
//! The environment is the only source. `envy` reads it into plain strings; each string is then parsed
//! separately, so that one error does not hide another.

#[cfg(any(feature = "s3", feature = "tls", feature = "upstream"))]
mod authorities;
mod access;
mod location;
#[cfg(feature = "upstream")]
mod netrc;
mod parse;
mod problem;
mod reread;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "upstream")]
mod upstream;
mod variables;

use std::time::Duration;

use serde::Deserialize;

pub use access::{Access, Credentials, Requirement, Writers};
#[cfg(any(feature = "s3", feature = "tls", feature = "upstream"))]
pub use authorities::{AuthoritiesError, authorities};
#[cfg(feature = "s3")]
pub use location::Bucket;
pub use location::Location;
#[cfg(feature = "upstream")]
pub use netrc::{Found, Netrc};
pub use parse::{Listen, parse_duration, parse_size};
pub use problem::{Problem, Problems};
#[cfg(feature = "tls")]
pub use tls::Tls;
#[cfg(feature = "upstream")]
pub use upstream::{Login, Upstream, Upstreams};
pub use variables::{VARIABLES, Variable};

use crate::logging::{LogFormat, LogLevel};
use crate::nix::{CacheInfo, PublicKey};
use access::Users;
use parse::Parser;

/// Prefix of all variables.
pub const PREFIX: &str = "NIX_STORED_";

/// Default of `NIX_STORED_PATH`.
const DEFAULT_PATH: &str = "/var/lib/nixStored";

/// The configuration of the daemon and of the commands.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory or bucket of the cache.
    pub location: Location,
    /// Address to listen on.
    pub listen: Listen,
    /// Users. Whether anonymous uploads are allowed also depends on `listen`; see `Users::access`.
    pub users: Users,
    /// Minimum level of log messages.
    pub log_level: LogLevel,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Contents of `nix-cache-info`.
    pub cache_info: CacheInfo,
    /// Conditions for uploads.
    pub admission: Admission,
    /// Free disk space, in bytes, that uploads must leave.
    pub min_free_space: u64,
    /// Limits of garbage collections.
    pub retention: Retention,
    /// Whether clients are redirected to the bucket for NARs.
    #[cfg(feature = "s3")]
    pub s3_redirect: bool,
    /// Certificate and key; `None`: no TLS.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    /// Upstream caches.
    #[cfg(feature = "upstream")]
    pub upstreams: Upstreams,
}

/// Limits of garbage collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Maximum size of the cache, in bytes; above it, least recently used paths are removed.
    pub max_size: Option<u64>,
    /// Maximum time without use; paths unused for longer are removed.
    pub max_age: Option<Duration>,
    /// Interval between collections of the daemon.
    pub gc_interval: Duration,
}

/// Conditions for uploads.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// If not empty, every narinfo needs a valid signature by one of these keys.
    pub trusted_public_keys: Vec<PublicKey>,
    /// URL of each upstream, with the keys that verify narinfos mirrored from it.
    pub upstream_keys: Vec<(String, Vec<PublicKey>)>,
    /// Depth of the verification of NARs.
    pub verify: Verify,
    /// Whether a narinfo is refused unless all its references are in the cache.
    pub require_references: bool,
    /// Maximum size of one upload, in bytes.
    pub max_upload_size: Option<u64>,
}

/// Depth of the verification of NARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Hash and size of the file.
    File,
    /// Also hash and size of the unpacked NAR.
    #[default]
    Nar,
}

impl std::str::FromStr for Verify {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "file" => Ok(Self::File),
            "nar" => Ok(Self::Nar),
            _ => Err("is neither nar nor file"),
        }
    }
}

/// Variables whose empty value is an error: if it counted as unset, a failed command substitution would
/// weaken security.
const NEVER_EMPTY: [&str; 1] = ["NIX_STORED_TRUSTED_PUBLIC_KEYS"];

/// The values as text; an empty value counts as unset, except for [`NEVER_EMPTY`].
#[cfg_attr(
    not(all(feature = "s3", feature = "tls", feature = "upstream")),
    expect(dead_code, reason = "rejected by `check_known` in builds without the feature")
)]
#[derive(Debug, Default, Deserialize)]
struct Raw {
    path: Option<String>,
    listen_interface: Option<String>,
    user_read: Option<String>,
    user_read_pass: Option<String>,
    user_read_passfile: Option<String>,
    user_write: Option<String>,
    user_write_pass: Option<String>,
    user_write_passfile: Option<String>,
    anonymous_write: Option<String>,
    log_level: Option<String>,
    log_format: Option<String>,
    store_dir: Option<String>,
    priority: Option<String>,
    want_mass_query: Option<String>,
    trusted_public_keys: Option<String>,
    verify: Option<String>,
    require_references: Option<String>,
    max_upload_size: Option<String>,
    min_free_space: Option<String>,
    max_size: Option<String>,
    max_age: Option<String>,
    gc_interval: Option<String>,
    s3_redirect: Option<String>,
    upstreams: Option<String>,
    upstream_netrc: Option<String>,
    upstream_absent_ttl: Option<String>,
    upstream_present_ttl: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    tls_client_ca: Option<String>,
}

impl Raw {
    /// Reads `vars`; ignores names without [`PREFIX`].
    fn read(vars: impl IntoIterator<Item = (String, String)>) -> (Self, Parser) {
        let vars: Vec<(String, String)> = vars
            .into_iter()
            .filter(|(name, value)| {
                let set = !value.is_empty() || NEVER_EMPTY.contains(&name.as_str());
                name.starts_with(PREFIX) && set
            })
            .collect();
        let mut parser = Parser::default();
        for (name, _) in &vars {
            variables::check_known(name, &mut parser);
        }
        let raw = envy::prefixed(PREFIX)
            .from_iter(vars)
            .expect("every field is an optional string, which any value fills");
        (raw, parser)
    }
}

/// The environment of the process.
fn process_vars() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        // Invalid UTF-8 becomes replacement characters, which no variable but PATH accepts.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        (text(name), text(value))
    })
}

impl Config {
    /// Reads the environment of the process.
    pub fn from_env() -> Result<Self, Problems> {
        Self::from_vars(process_vars())
    }

    /// Reads `vars`; ignores names without [`PREFIX`].
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, Problems> {
        let (raw, mut parser) = Raw::read(vars);
        let defaults = CacheInfo::default();
        #[cfg(feature = "upstream")]
        let upstreams = parser.upstreams(raw.upstreams, raw.upstream_netrc);
        let config = Self {
            location: parser.parsed("PATH", raw.path, Location::Directory(DEFAULT_PATH.into())),
            listen: parser.parsed("LISTEN_INTERFACE", raw.listen_interface, Listen::default()),
            users: Users {
                read: parser.credentials(
                    "READ",
                    raw.user_read,
                    raw.user_read_pass,
                    raw.user_read_passfile,
                ),
                write: parser.credentials(
                    "WRITE",
                    raw.user_write,
                    raw.user_write_pass,
                    raw.user_write_passfile,
                ),
                anonymous: match parser.switch("ANONYMOUS_WRITE", raw.anonymous_write) {
                    None => Writers::LocalOnly,
                    Some(true) => Writers::Anyone,
                    Some(false) => Writers::Nobody,
                },
                certificates: cfg!(feature = "tls") && raw.tls_client_ca.is_some(),
            },
            log_level: parser.parsed("LOG_LEVEL", raw.log_level, LogLevel::Info),
            log_format: parser.parsed("LOG_FORMAT", raw.log_format, LogFormat::Text),
            cache_info: CacheInfo {
                store_dir: parser.parsed("STORE_DIR", raw.store_dir, defaults.store_dir),
                priority: parser.parsed("PRIORITY", raw.priority, defaults.priority),
                want_mass_query: parser
                    .switch("WANT_MASS_QUERY", raw.want_mass_query)
                    .unwrap_or(defaults.want_mass_query),
            },
            admission: Admission {
                trusted_public_keys: parser.public_keys(raw.trusted_public_keys),
                #[cfg(feature = "upstream")]
                upstream_keys: upstreams
                    .iter()
                    .map(|it| (it.to_string(), it.trusted_public_keys.clone()))
                    .collect(),
                #[cfg(not(feature = "upstream"))]
                upstream_keys: Vec::new(),
                verify: parser.parsed("VERIFY", raw.verify, Verify::default()),
                require_references: parser
                    .switch("REQUIRE_REFERENCES", raw.require_references)
                    .unwrap_or_default(),
                max_upload_size: parser.size("MAX_UPLOAD_SIZE", raw.max_upload_size),
            },
            min_free_space: parser.size("MIN_FREE_SPACE", raw.min_free_space).unwrap_or_default(),
            retention: Retention {
                max_size: parser.size("MAX_SIZE", raw.max_size),
                max_age: parser.duration("MAX_AGE", raw.max_age),
                gc_interval: parser
                    .duration("GC_INTERVAL", raw.gc_interval)
                    .unwrap_or(Duration::from_secs(3600)),
            },
            #[cfg(feature = "s3")]
            s3_redirect: parser.switch("S3_REDIRECT", raw.s3_redirect).unwrap_or_default(),
            #[cfg(feature = "tls")]
            tls: parser.tls(raw.tls_cert, raw.tls_key, raw.tls_client_ca),
            #[cfg(feature = "upstream")]
            upstreams: Upstreams {
                list: upstreams,
                absent_ttl: parser
                    .duration("UPSTREAM_ABSENT_TTL", raw.upstream_absent_ttl)
                    .unwrap_or(Duration::from_secs(60)),
                present_ttl: parser
                    .duration("UPSTREAM_PRESENT_TTL", raw.upstream_present_ttl)
                    .unwrap_or(Duration::from_secs(3600)),
            },
        };
        parser.finish(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config, Problems> {
        Config::from_vars(
            vars.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())),
        )
    }

    fn problems(vars: &[(&str, &str)]) -> String {
        read(vars).unwrap_err().to_string()
    }

    #[test]
    fn nothing_set_is_a_whole_configuration() {
        let config = read(&[]).unwrap();
        assert_eq!(config.location.to_string(), "/var/lib/nixStored");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8100");
        assert_eq!(config.cache_info.priority, 30);
        assert_eq!(config.log_level, LogLevel::Info);
    }

    #[test]
    fn empty_means_unset() {
        let config = read(&[("PATH", ""), ("PRIORITY", ""), ("USER_READ", "")]).unwrap();
        assert_eq!(config.location.to_string(), "/var/lib/nixStored");
        assert_eq!(config.cache_info.priority, 30);
    }

    #[test]
    fn an_empty_list_of_trusted_keys_does_not_turn_off_signature_checks() {
        for empty in ["", " ", "\n"] {
            let told = problems(&[("TRUSTED_PUBLIC_KEYS", empty)]);
            assert!(told.contains("would turn off signature checks"), "{told}");
        }
        #[cfg(feature = "upstream")]
        for empty in ["", "%20", ","] {
            let upstream = format!("https://cache.example.org?trusted-public-keys={empty}");
            let told = problems(&[("UPSTREAMS", &upstream)]);
            assert!(told.contains("would turn off signature checks"), "{told}");
        }
    }

    #[test]
    fn every_variable_of_the_table_is_read() {
        for variable in VARIABLES {
            // A value that no variable but PATH accepts.
            let told = read(&[(variable.suffix(), "\u{fffd}")]);
            match variable.suffix() {
                "PATH" => assert_eq!(told.unwrap().location.to_string(), "\u{fffd}"),
                // A password without a user is an error of the user's variable.
                suffix => {
                    let name = suffix.strip_suffix("_PASS").unwrap_or(suffix);
                    assert!(told.unwrap_err().to_string().contains(name), "{suffix}");
                }
            }
        }
    }

    #[test]
    fn all_errors_are_reported_at_once_each_with_an_example() {
        let told = problems(&[
            ("PRIORITY", "first"),
            ("LISTEN_INTERFACE", "8100"),
            ("WANT_MASS_QUERY", "perhaps"),
            ("STORE_DIR", "nix/store"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
            ("USER_WRIET", "me"),
        ]);
        assert_eq!(told.lines().count(), 7, "{told}");
        for part in [
            "NIX_STORED_PRIORITY: “first”",
            "NIX_STORED_PRIORITY=30",
            "NIX_STORED_LISTEN_INTERFACE: “8100”",
            "NIX_STORED_WANT_MASS_QUERY: “perhaps”",
            "NIX_STORED_STORE_DIR: “nix/store”",
            "NIX_STORED_LOG_LEVEL: “loud”",
            "NIX_STORED_LOG_FORMAT: “xml”",
            "NIX_STORED_USER_WRIET: unknown variable; did you mean NIX_STORED_USER_WRITE?",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }

    #[test]
    fn a_user_needs_a_password_and_a_password_a_user() {
        assert!(problems(&[("USER_READ", "me")]).contains("NIX_STORED_USER_READ_PASSFILE"));
        assert!(problems(&[("USER_WRITE_PASS", "x")]).contains("NIX_STORED_USER_WRITE"));
        let both = [("USER_READ", "me"), ("USER_READ_PASS", "x"), ("USER_READ_PASSFILE", "/y")];
        assert!(problems(&both).contains("set only one of them"));
        assert!(problems(&[("USER_READ", "a:b"), ("USER_READ_PASS", "x")]).contains("colon"));
        let same = [
            ("USER_READ", "me"),
            ("USER_READ_PASS", "x"),
            ("USER_WRITE", "me"),
            ("USER_WRITE_PASS", "x"),
        ];
        assert!(read(&same).is_ok());
    }

    #[test]
    fn a_password_file_loses_one_trailing_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let path = file.path().to_str().unwrap();
        let config = read(&[("USER_READ", "me"), ("USER_READ_PASSFILE", path)]).unwrap();
        assert!(config.users.read.unwrap().matches("me", "secret"));

        std::fs::write(file.path(), "\n").unwrap();
        let told = problems(&[("USER_READ", "me"), ("USER_READ_PASSFILE", path)]);
        assert!(told.contains("empty"), "{told}");
        let told = problems(&[("USER_READ", "me"), ("USER_READ_PASSFILE", "/does/not/exist")]);
        assert!(told.contains("/does/not/exist"), "{told}");
    }

    #[test]
    fn sizes_take_powers_of_1024() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("4K", 4096), ("2m", 2 << 20), ("3G", 3 << 30), ("1T", 1 << 40)]
        {
            let config = read(&[("MAX_UPLOAD_SIZE", text)]).unwrap();
            assert_eq!(config.admission.max_upload_size, Some(bytes), "{text}");
        }
        for text in ["G", "-1", "1.5G", "1GB", "1 G", "99999999999T"] {
            assert!(problems(&[("MIN_FREE_SPACE", text)]).contains(text), "{text}");
        }
    }

    #[test]
    fn every_public_key_is_parsed_and_the_wrong_one_named() {
        let good = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let config = read(&[("TRUSTED_PUBLIC_KEYS", &format!("{good}  {good}"))]).unwrap();
        assert_eq!(config.admission.trusted_public_keys.len(), 2);
        let told = problems(&[("TRUSTED_PUBLIC_KEYS", &format!("{good} x:AAAA"))]);
        assert!(told.contains("“x:AAAA”"), "{told}");
    }

    #[test]
    fn passwords_are_never_shown() {
        let config = read(&[("USER_READ", "me"), ("USER_READ_PASS", "hunter2")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
