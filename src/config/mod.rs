//! `NIX_STORED_*` in, [`Config`] out, every problem reported at once.
//!
//! The environment is the only source. `envy` reads it into plain strings; everything
//! after that is parsing, and no problem hides another.

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

/// What every variable of the daemon begins with.
pub const PREFIX: &str = "NIX_STORED_";

/// Where the cache is when nobody says it.
const DEFAULT_PATH: &str = "/var/lib/nixStored";

/// How the daemon shall run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the cache is.
    pub location: Location,
    /// Where to listen.
    pub listen: Listen,
    /// Who may read and who may upload, before the address decides about anonymous uploads.
    pub users: Users,
    /// What is logged.
    pub log_level: LogLevel,
    /// How it is logged.
    pub log_format: LogFormat,
    /// What `nix-cache-info` says.
    pub cache_info: CacheInfo,
    /// What an upload must be.
    pub admission: Admission,
    /// How many bytes of the disk stay free.
    pub min_free_space: u64,
    /// What the cache keeps to by itself.
    pub retention: Retention,
    /// Whether clients are sent to the bucket for NARs.
    #[cfg(feature = "s3")]
    pub s3_redirect: bool,
    /// How connections are encrypted, if they are.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    /// Other caches behind this one.
    #[cfg(feature = "upstream")]
    pub upstreams: Upstreams,
}

/// What the cache keeps to by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Above so many bytes, the longest unused goes.
    pub max_size: Option<u64>,
    /// What has not been used for so long goes.
    pub max_age: Option<Duration>,
    /// How often the daemon looks.
    pub gc_interval: Duration,
}

/// What an upload must be.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Where there are any, every narinfo needs a valid signature by one of them.
    pub trusted_public_keys: Vec<PublicKey>,
    /// The URL of each upstream, and the keys by which a narinfo that was mirrored from there is
    /// judged.
    pub upstream_keys: Vec<(String, Vec<PublicKey>)>,
    /// How deep a NAR is checked.
    pub verify: Verify,
    /// Whether the references of a narinfo must be here before it.
    pub require_references: bool,
    /// The length of the largest upload, in bytes.
    pub max_upload_size: Option<u64>,
}

/// How deep a NAR is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// The file's hash and size.
    File,
    /// And, unpacked, the NAR's.
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

/// Variables whose empty value would weaken security if it counted as unset: a command substitution
/// that fails leaves one.
const NEVER_EMPTY: [&str; 1] = ["NIX_STORED_TRUSTED_PUBLIC_KEYS"];

/// The variables as text; an empty one counts as unset, but for [`NEVER_EMPTY`].
#[cfg_attr(
    not(all(feature = "s3", feature = "tls", feature = "upstream")),
    expect(dead_code, reason = "told as not in this build")
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
    /// What `vars` say, passing over what does not begin with [`PREFIX`].
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

/// The process's environment.
fn process_vars() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        // What is not UTF-8 turns into replacement characters, which no variable accepts.
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        (text(name), text(value))
    })
}

impl Config {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, Problems> {
        Self::from_vars(process_vars())
    }

    /// Reads `vars`, passing over what does not begin with [`PREFIX`].
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
    fn an_empty_list_of_trusted_keys_does_not_mean_everybody() {
        for empty in ["", " ", "\n"] {
            let told = problems(&[("TRUSTED_PUBLIC_KEYS", empty)]);
            assert!(told.contains("would trust everybody"), "{told}");
        }
        #[cfg(feature = "upstream")]
        for empty in ["", "%20", ","] {
            let upstream = format!("https://cache.example.org?trusted-public-keys={empty}");
            let told = problems(&[("UPSTREAMS", &upstream)]);
            assert!(told.contains("would trust everybody"), "{told}");
        }
    }

    #[test]
    fn every_variable_of_the_table_is_read_or_says_when_it_will_be() {
        for variable in VARIABLES {
            // A value that no variable accepts: whoever reads it complains or keeps it.
            let told = read(&[(variable.suffix(), "\u{fffd}")]);
            match variable.suffix() {
                "PATH" => assert_eq!(told.unwrap().location.to_string(), "\u{fffd}"),
                // A lone password is told as a missing user.
                suffix => {
                    let name = suffix.strip_suffix("_PASS").unwrap_or(suffix);
                    assert!(told.unwrap_err().to_string().contains(name), "{suffix}");
                }
            }
        }
    }

    #[test]
    fn all_problems_are_told_at_once_each_with_an_example() {
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
            "NIX_STORED_USER_WRIET: there is no such variable; did you mean NIX_STORED_USER_WRITE?",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }

    #[test]
    fn a_user_needs_a_password_and_a_password_a_user() {
        assert!(problems(&[("USER_READ", "me")]).contains("NIX_STORED_USER_READ_PASSFILE"));
        assert!(problems(&[("USER_WRITE_PASS", "x")]).contains("NIX_STORED_USER_WRITE"));
        let both = [("USER_READ", "me"), ("USER_READ_PASS", "x"), ("USER_READ_PASSFILE", "/y")];
        assert!(problems(&both).contains("only one"));
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
