//! Upstream caches: a mirror of real caches and of servers that send errors, wrong data or nothing.
//!
//! Programs: lzip, microsocks, nginx, nix, openssl, tinyproxy.

/// Certificates of upstreams.
mod certificates;
/// The settings, and errors in them.
mod config;
/// Concurrent clients.
mod concurrent;
/// Failures of upstreams.
mod faults;
/// The memory for facts about upstreams.
mod memory;
/// Nix as the client, and real caches as upstreams.
mod nix;
/// Proxies between the mirror and an upstream.
mod proxies;
/// Upstreams whose narinfos have no hash of the NAR's file.
mod no_file_hash;
/// Uploads to a mirror.
mod uploads;

use crate::support::daemon::{Builder, Daemon};

/// A mirror of these upstreams, in this order.
fn mirror_of(upstreams: &[&str]) -> Builder {
    Daemon::builder().env("NIX_STORED_UPSTREAMS", &upstreams.join(" "))
}
