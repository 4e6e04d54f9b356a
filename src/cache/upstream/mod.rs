//! Upstreams: other caches that are queried for missing objects, in the order of trust.
//!
//! `client` sends requests to one upstream, and `breaker` stops them while the upstream fails.
//! `lookup` finds the upstream that has a path, and remembers it for a while. `fetch` fetches a NAR
//! once for all its readers, who read the `partial_nar` file while it is hashed; `resuming_body` continues
//! interrupted transfers. A NAR with an unknown file hash has a `provisional` name.

mod breaker;
mod client;
mod expiring;
mod fetch;
mod partial_nar;
mod lookup;
mod name_locks;
mod notifying;
mod provisional;
mod redirects;
mod resuming_body;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::Weighter;
use thiserror::Error;
use tokio::sync::Semaphore;

pub use client::UpstreamFailure;

use super::feed::TransferLimit;
use crate::config;
use crate::metrics::Metrics;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, PublicKey, StorePathHash};
use client::Client;
use expiring::{Entry, ExpiringCache};
use lookup::{LookupResult, Remote};
use name_locks::NameLocks;
use partial_nar::PartialNar;

/// How many absent side files are remembered, and about how many paths: see [`PATHS_BYTES`]. A closure
/// of a desktop system has some 10,000 paths.
const PATHS: usize = 64 * 1024;

/// How many bytes of narinfos are remembered, by path and by NAR.
const PATHS_BYTES: u64 = 64 * 1024 * 1024;

/// Narinfos of more than a megabyte that are received at a time, from all upstreams together. Each can
/// have 16 MiB.
const LARGE_ANSWERS: usize = 2;

/// How many NARs are fetched at a time; more wait. Those that hardly arrive do not count.
const FETCHES: usize = 64;

/// How many hardly arrive before they count, too.
const SLOW_FETCHES: usize = 512;

type Fetches = HashMap<NarName, Arc<PartialNar>>;

/// The upstreams of a cache.
pub struct Upstreams {
    clients: Vec<Arc<Client>>,
    absent_ttl: Duration,
    present_ttl: Duration,
    paths: ExpiringCache<StorePathHash, LookupResult, ByLength>,
    /// The NARs that looked-up narinfos name.
    nars: quick_cache::sync::Cache<NarName, Arc<Remote>, ByLength>,
    /// The running fetches.
    fetches: Mutex<Fetches>,
    /// Side files that no upstream has.
    absent: ExpiringCache<CachePath, ()>,
    /// Locks that are held while a NAR is requested from the upstreams.
    beginnings: NameLocks,
    limit: TransferLimit,
}

/// The failure of an upstream that may have an object that no other upstream has.
#[derive(Debug, Clone, Error)]
#[error("{upstream}: {trouble}")]
pub struct UpstreamError {
    /// The URL of the upstream, without credentials.
    pub upstream: String,
    /// The failure.
    pub trouble: UpstreamFailure,
}

/// An upstream that cannot be set up.
#[derive(Debug, Error)]
#[error("cannot use the upstream {upstream}")]
pub struct SetUpError {
    upstream: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Weighs remembered lookups by their memory.
#[derive(Clone)]
struct ByLength;

/// What an entry takes besides the text of its narinfo.
const OVERHEAD: u64 = 512;

impl Weighter<StorePathHash, Entry<LookupResult>> for ByLength {
    fn weight(&self, _: &StorePathHash, entry: &Entry<LookupResult>) -> u64 {
        let length = match &entry.value {
            Ok(Some(remote)) => remote.object.1.len() as u64,
            _ => 0,
        };
        OVERHEAD + length
    }
}

impl Weighter<NarName, Arc<Remote>> for ByLength {
    fn weight(&self, _: &NarName, remote: &Arc<Remote>) -> u64 {
        OVERHEAD + remote.object.1.len() as u64
    }
}

impl Upstreams {
    /// Sets up the configured upstreams. Sends no request yet.
    pub fn new(config: &config::Upstreams, metrics: &Metrics) -> Result<Self, SetUpError> {
        let large = Arc::new(Semaphore::new(LARGE_ANSWERS));
        let clients = config.list.iter().map(|upstream| {
            let client = Client::new(upstream, metrics, Arc::clone(&large))
                .map_err(|source| SetUpError { upstream: upstream.to_string(), source })?;
            Ok(Arc::new(client))
        });
        Ok(Self {
            clients: clients.collect::<Result<_, SetUpError>>()?,
            absent_ttl: config.absent_ttl,
            present_ttl: config.present_ttl,
            paths: ExpiringCache::with_weighter(PATHS, PATHS_BYTES, ByLength),
            nars: quick_cache::sync::Cache::with_weighter(PATHS, PATHS_BYTES, ByLength),
            fetches: Mutex::default(),
            absent: ExpiringCache::new(PATHS),
            beginnings: NameLocks::default(),
            limit: TransferLimit::new(FETCHES, SLOW_FETCHES),
        })
    }

    /// Uses the credentials in `config`, which has the same upstreams, from now on.
    pub fn log_in(&self, config: &config::Upstreams) {
        for (client, upstream) in self.clients.iter().zip(&config.list) {
            client.log_in(upstream);
        }
    }

    fn is_known_absent(&self, path: &CachePath) -> bool {
        self.absent.get(path).is_some()
    }

    fn remember_absent(&self, path: &CachePath) {
        self.absent.insert(path.clone(), (), self.absent_ttl);
    }

    /// Whether anything that comes from there is kept here.
    pub(super) fn are_kept(&self) -> bool {
        self.clients.iter().any(|client| client.store)
    }

    /// Each of them, and how it is.
    #[cfg(feature = "pages")]
    pub(super) fn states(&self) -> Vec<super::browse::UpstreamStatus> {
        let state = |client: &Arc<Client>| super::browse::UpstreamStatus {
            url: client.name.clone(),
            left_alone: client.left_alone(),
            keys: client.trusted_public_keys.iter().map(ToString::to_string).collect(),
        };
        self.clients.iter().map(state).collect()
    }

    /// The keys by which a mirrored narinfo may be signed.
    pub fn trusted_public_keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.clients.iter().flat_map(|client| &client.trusted_public_keys)
    }
}
