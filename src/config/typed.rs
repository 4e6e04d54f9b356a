//! The typed configuration.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::access::Users;
use super::listen::Listen;
use super::location::Location;
#[cfg(feature = "tls")]
use super::tls::Tls;
#[cfg(feature = "upstream")]
use super::upstream::Upstreams;
use crate::logging::{LogFormat, LogLevel};
use crate::nix::{CacheInfo, PublicKey};

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

impl Config {
    /// A configuration without values. The table of settings fills in all of them, defaults included.
    pub(super) fn blank() -> Self {
        Self {
            location: Location::Directory(PathBuf::new()),
            listen: Listen::Tcp(String::new()),
            users: Users::default(),
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            cache_info: CacheInfo::default(),
            admission: Admission::default(),
            min_free_space: 0,
            retention: Retention::default(),
            #[cfg(feature = "s3")]
            s3_redirect: false,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "upstream")]
            upstreams: Upstreams::default(),
        }
    }
}

/// Limits of garbage collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

impl FromStr for Verify {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "file" => Ok(Self::File),
            "nar" => Ok(Self::Nar),
            _ => Err("is neither nar nor file"),
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Nar => "nar",
        })
    }
}
