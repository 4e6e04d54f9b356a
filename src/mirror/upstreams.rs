//! The upstreams of a cache, and what is remembered of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::client::UpstreamClient;
use super::error::SetUpError;
use super::expiring::ExpiringCache;
use super::name_locks::NameLocks;
use super::partial_nar::PartialNar;
use super::remote::{LookupResult, RemotePath, RemoteWeighter};
use crate::config;
use crate::ingest::TransferLimit;
use crate::metrics::Metrics;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, PublicKey, StorePathHash};

/// The number of absent side files that are remembered, and the approximate number of looked-up
/// paths (see [`MAX_LOOKUP_BYTES`]). The closure of a desktop system has about 10,000 paths.
const MAX_LOOKUPS: usize = 64 * 1024;

/// The maximum size of the remembered narinfos in bytes, in each of the two caches by path and by
/// NAR.
const MAX_LOOKUP_BYTES: u64 = 64 * 1024 * 1024;

/// The maximum number of narinfos above 1 MiB that are received at a time, from all upstreams
/// together. Each can have up to 16 MiB.
const MAX_LARGE_RESPONSES: usize = 2;

/// The maximum number of NARs that are fetched at a time, without slow ones. Others wait.
const MAX_FETCHES: usize = 64;

/// The maximum number of slow fetches. More of them count as [`MAX_FETCHES`], too.
const MAX_SLOW_FETCHES: usize = 512;

pub(super) type RunningFetches = HashMap<NarName, Arc<PartialNar>>;

/// The upstreams of a cache.
pub struct Upstreams {
    pub(super) clients: Vec<Arc<UpstreamClient>>,
    pub(super) absent_ttl: Duration,
    pub(super) present_ttl: Duration,
    pub(super) paths: ExpiringCache<StorePathHash, LookupResult, RemoteWeighter>,
    /// The looked-up paths, by the name of their NAR.
    pub(super) nars: quick_cache::sync::Cache<NarName, Arc<RemotePath>, RemoteWeighter>,
    /// The running fetches.
    pub(super) fetches: Mutex<RunningFetches>,
    /// Side files that no upstream has.
    pub(super) absent: ExpiringCache<CachePath, ()>,
    /// Locks that are held while a NAR is requested from the upstreams.
    pub(super) request_locks: NameLocks,
    /// Limits the NARs that are fetched at a time.
    pub(super) fetch_limit: TransferLimit,
}

/// The status of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// The URL, without credentials.
    pub url: String,
    /// The time for which its circuit stays open, or `None` if it is closed.
    pub circuit_open: Option<Duration>,
    /// The public keys that its narinfos must be signed with.
    pub keys: Vec<String>,
}

impl Upstreams {
    /// Sets up the configured upstreams. Sends no request yet.
    pub fn new(config: &config::Upstreams, metrics: &Metrics) -> Result<Self, SetUpError> {
        let large_responses = Arc::new(Semaphore::new(MAX_LARGE_RESPONSES));
        let clients = config.list.iter().map(|upstream| {
            let client = UpstreamClient::new(upstream, metrics, Arc::clone(&large_responses))
                .map_err(|source| SetUpError { upstream: upstream.to_string(), source })?;
            Ok(Arc::new(client))
        });
        let clients = clients.collect::<Result<_, SetUpError>>()?;
        Ok(Self::of(clients, config.absent_ttl, config.present_ttl))
    }

    /// Creates an empty list of upstreams.
    pub fn none() -> Self {
        Self::of(Vec::new(), Duration::ZERO, Duration::ZERO)
    }

    fn of(clients: Vec<Arc<UpstreamClient>>, absent_ttl: Duration, present_ttl: Duration) -> Self {
        Self {
            clients,
            absent_ttl,
            present_ttl,
            paths: ExpiringCache::with_weighter(MAX_LOOKUPS, MAX_LOOKUP_BYTES, RemoteWeighter),
            nars: quick_cache::sync::Cache::with_weighter(
                MAX_LOOKUPS,
                MAX_LOOKUP_BYTES,
                RemoteWeighter,
            ),
            fetches: Mutex::default(),
            absent: ExpiringCache::new(MAX_LOOKUPS),
            request_locks: NameLocks::default(),
            fetch_limit: TransferLimit::new(MAX_FETCHES, MAX_SLOW_FETCHES),
        }
    }

    /// Uses the credentials in `config`, which has the same upstreams, from now on.
    pub(super) fn set_logins(&self, config: &config::Upstreams) {
        for (client, upstream) in self.clients.iter().zip(&config.list) {
            client.set_login(upstream);
        }
    }

    pub(super) fn is_known_absent(&self, path: &CachePath) -> bool {
        self.absent.get(path).is_some()
    }

    pub(super) fn remember_absent(&self, path: &CachePath) {
        self.absent.insert(path.clone(), (), self.absent_ttl);
    }

    /// Whether any upstream is configured.
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Whether objects of any upstream are stored.
    pub(super) fn stores_any(&self) -> bool {
        self.clients.iter().any(|client| client.store)
    }

    /// The status of each upstream, in the order of trust.
    pub(super) fn statuses(&self) -> Vec<UpstreamStatus> {
        let status = |client: &Arc<UpstreamClient>| UpstreamStatus {
            url: client.name.clone(),
            circuit_open: client.circuit_open(),
            keys: client.trusted_public_keys.iter().map(ToString::to_string).collect(),
        };
        self.clients.iter().map(status).collect()
    }

    /// Returns the keys of all upstreams, by which mirrored narinfos may be signed.
    pub fn trusted_public_keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.clients.iter().flat_map(|client| &client.trusted_public_keys)
    }
}
