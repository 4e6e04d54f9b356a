//! Other caches behind this one: what is not here is asked of each of them, in the order of trust.
//!
//! `client` asks one of them, and `breaker` leaves it alone while it is in trouble. `lookup`
//! finds out who has a path and remembers it for a while. `fetch` gets a NAR, once for everybody
//! who waits for it, from the `growing` file while it is hashed, `resuming` where it
//! breaks off. A NAR whose file hash is not known has a `provisional` name until then.

mod breaker;
mod client;
mod expiring;
mod fetch;
mod growing;
mod lookup;
mod name_locks;
mod notifying;
mod provisional;
mod redirects;
mod resuming;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::Weighter;
use thiserror::Error;
use tokio::sync::Semaphore;

pub use client::Trouble;

use super::feed::TransferLimit;
use crate::config;
use crate::metrics::Metrics;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, PublicKey, StorePathHash};
use client::Client;
use expiring::{Entry, ExpiringCache};
use growing::Growing;
use lookup::{LookupResult, Remote};
use name_locks::NameLocks;

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

type Fetches = HashMap<NarName, Arc<Growing>>;

/// The upstreams of a cache.
pub struct Upstreams {
    clients: Vec<Arc<Client>>,
    absent_ttl: Duration,
    present_ttl: Duration,
    paths: ExpiringCache<StorePathHash, LookupResult, ByLength>,
    /// Where NARs are that were heard of in narinfos.
    nars: quick_cache::sync::Cache<NarName, Arc<Remote>, ByLength>,
    /// NARs on their way.
    fetches: Mutex<Fetches>,
    /// Side files that none of them has.
    absent: ExpiringCache<CachePath, ()>,
    /// Held while the upstreams are asked for the NAR of a name.
    beginnings: NameLocks,
    limit: TransferLimit,
}

/// No upstream that works has an object, and this one might.
#[derive(Debug, Clone, Error)]
#[error("{upstream} {trouble}")]
pub struct UpstreamError {
    /// The upstream.
    pub upstream: String,
    /// What is wrong with it.
    pub trouble: Trouble,
}

/// An upstream that cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the upstream {upstream}")]
pub struct SetUpError {
    upstream: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Weighs what is remembered by the memory that it takes.
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
    /// Prepares to ask the configured upstreams; none is asked yet.
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

    /// Logs in as `config` says from now on, which has the same upstreams.
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
    pub(super) fn states(&self) -> Vec<super::browse::Behind> {
        let state = |client: &Arc<Client>| super::browse::Behind {
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
