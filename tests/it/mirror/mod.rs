//! Upstream caches: a mirror of real caches and of servers that send errors, wrong data or nothing.
//!
//! Programs: lzip, microsocks, nginx, nix, openssl, tinyproxy.

/// TLS.
mod certificates;
/// The variables, and what is said of those that cannot be.
mod config;
/// Many clients at once.
mod crowd;
/// Every kind of trouble that an upstream can make.
mod faults;
/// What it remembers.
mod memory;
/// A real, unmodified Nix on one side and real caches on the other.
mod nix;
/// Proxies on the way to an upstream.
mod proxies;
/// Caches that do not know the hash of a NAR's file.
mod unnamed;
/// Uploads to a cache that has upstreams.
mod uploads;

use crate::support::daemon::{Builder, Daemon};

/// A mirror of these, in this order.
fn mirror_of(upstreams: &[&str]) -> Builder {
    Daemon::builder().env("NIX_STORED_UPSTREAMS", &upstreams.join(" "))
}
