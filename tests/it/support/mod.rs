//! Shared by the tests: the daemon as a process, a private Nix, servers, clients, and directories.
#![allow(dead_code, reason = "a toolbox: not every tool is in use at every time")]

pub mod address;
pub mod cache_dir;
#[cfg(feature = "pages")]
pub mod browser;
pub mod cache;
#[cfg(any(feature = "s3", feature = "tls", feature = "upstream"))]
pub mod certificates;
pub mod closures;
pub mod daemon;
pub mod disk;
pub mod fixture;
pub mod injection;
#[cfg(feature = "tls")]
pub mod http2;
pub mod metrics;
#[cfg(any(feature = "s3", feature = "upstream"))]
pub mod server_process;
pub mod nix;
pub mod noise;
pub mod objects;
pub mod packing;
pub mod paths;
pub mod plain_client;
pub mod rounds;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "s3")]
pub mod s3_bucket;
#[cfg(feature = "s3")]
pub mod s3_faults;
#[cfg(feature = "s3")]
pub mod s3_garage;
pub mod scratch;
pub mod in_process;
#[cfg(feature = "upstream")]
pub mod scripted_upstream;
pub mod trace;
pub mod tree;
pub mod slow_uploads;
pub mod wire;
