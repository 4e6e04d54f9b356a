//! The state of the cache, and what all its operations share.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::nar_facts::KnownNarFacts;
use super::narinfo_cache::NarInfoCache;
use super::signatures::SignaturePolicy;
use crate::config::Admission;
use crate::ingest::{LargeNarInfos, TransferLimit};
use crate::inventory::{Inventory, InventoryError};
use crate::metrics::Metrics;
use crate::nix::cache_path::NarName;
use crate::nix::{CacheInfo, CachePath};
use crate::store::{KeyedLocks, Metadata, Removed, Store, StoreError, Stored};
use crate::unpack::DecodeBudget;

/// Objects that were used or uploaded within this time are never collected: a build may still be
/// uploading their referrers, and a client may still be downloading their references.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// The maximum number of concurrent large uploads: each has up to three batches of 256 KiB in
/// memory. More uploads wait for their `100 Continue`. Slow uploads do not count.
const UPLOADS: usize = 256;

/// The number of slow uploads above which they count, too.
const SLOW_UPLOADS: usize = 4096;

/// The maximum number of NARs whose facts are kept. A NAR whose facts were dropped is read again.
const FACTS: usize = 16 * 1024;

/// A local binary cache.
pub struct Cache {
    pub(super) store: Arc<Store>,
    pub(super) info: CacheInfo,
    /// `nix-cache-info` as it is served.
    pub(super) info_object: (Metadata, Bytes),
    pub(super) admission: Arc<Admission>,
    pub(super) signatures: SignaturePolicy,
    /// See [`GRACE`].
    pub(super) grace: Duration,
    /// Whether clients are redirected to the store for NARs, if the store has URLs for that.
    pub(super) redirects: bool,
    pub(super) metrics: Arc<Metrics>,
    pub(super) narinfos: NarInfoCache,
    /// Locks for changes of narinfos, by hash part.
    pub(super) narinfo_locks: KeyedLocks,
    /// The facts about NARs whose narinfo may be uploaded soon.
    pub(super) facts: quick_cache::sync::Cache<NarName, KnownNarFacts>,
    /// Limits concurrent large uploads that are not slow.
    pub(super) uploads: TransferLimit,
    pub(super) large_narinfos: LargeNarInfos,
    pub(super) decoders: DecodeBudget,
}

impl Cache {
    /// Creates a cache over `store` with the properties `info`.
    pub fn new(store: Arc<Store>, info: CacheInfo, admission: Admission) -> Self {
        let text = Bytes::from(info.to_string());
        let admission = Arc::new(admission);
        Self {
            store,
            info,
            info_object: (Metadata::of(&text), text),
            signatures: SignaturePolicy::new(Arc::clone(&admission)),
            admission,
            grace: GRACE,
            redirects: false,
            metrics: Metrics::new(),
            narinfos: NarInfoCache::new(),
            narinfo_locks: KeyedLocks::default(),
            facts: quick_cache::sync::Cache::new(FACTS),
            uploads: TransferLimit::new(UPLOADS, SLOW_UPLOADS),
            large_narinfos: LargeNarInfos::default(),
            decoders: DecodeBudget::default(),
        }
    }

    /// Sets another grace period than [`GRACE`]. Uses are recorded at least 24 times in it.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Sets whether clients are redirected to the store for NARs, if the store has URLs for that.
    #[must_use]
    pub fn with_redirects(self, redirects: bool) -> Self {
        Self { redirects, ..self }
    }

    /// The grace period: objects that were used or uploaded within it are never collected.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Whether clients are redirected to the store for NARs.
    #[cfg(feature = "upstream")]
    pub(crate) fn redirects(&self) -> bool {
        self.redirects
    }

    /// The contents of `nix-cache-info`.
    pub fn info(&self) -> &CacheInfo {
        &self.info
    }

    /// The conditions for uploads.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The store, for what reads it without using its objects.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn signatures(&self) -> &SignaturePolicy {
        &self.signatures
    }

    pub(crate) fn decoders(&self) -> &DecodeBudget {
        &self.decoders
    }

    /// Reads the contents of the cache. `on_progress` gets the number of objects so far.
    pub async fn inventory(
        &self,
        on_progress: impl FnMut(u64),
    ) -> Result<Inventory, InventoryError> {
        Inventory::read(&self.store, &self.info.store_dir, on_progress).await
    }

    /// Writes `nix-cache-info` if it is missing or has other values, so that Nix can read the store
    /// without the daemon. Returns `None` if it was right.
    pub async fn keep_info(&self) -> Result<Option<Stored>, StoreError> {
        self.store.ensure_lines(&CachePath::CacheInfo, self.info_object.1.clone()).await
    }

    /// Records all pending uses, before the process ends.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.store.flush().await
    }

    /// Removes an object, unless it was used after `unused_since`.
    pub(crate) async fn remove(
        &self,
        path: &CachePath,
        unused_since: SystemTime,
    ) -> Result<Removed, StoreError> {
        let removed = self.store.remove(path, unused_since).await;
        self.forget(path);
        removed
    }

    /// Moves an object to the quarantine, if it still has this entity tag. Returns false if it has
    /// another one, or is absent.
    pub(crate) async fn quarantine(
        &self,
        path: &CachePath,
        etag: &Bytes,
    ) -> Result<bool, StoreError> {
        let moved = self.store.quarantine(path, etag).await;
        self.forget(path);
        moved
    }

    /// Stores an object that is in memory, and counts it.
    pub(super) async fn store_whole(
        &self,
        path: &CachePath,
        bytes: Bytes,
    ) -> Result<Stored, StoreError> {
        let (started, size) = (Instant::now(), bytes.len() as u64);
        let stored = self.store.put(path, bytes).await?;
        self.metrics.committed(started);
        self.count(path, stored, size);
        Ok(stored)
    }

    /// Does the same in place of the object with the entity tag `before`, or of an absent object.
    /// Returns false if there is another object by now.
    pub(super) async fn replace_whole(
        &self,
        path: &CachePath,
        bytes: Bytes,
        before: Option<&Bytes>,
    ) -> Result<bool, StoreError> {
        let (started, size) = (Instant::now(), bytes.len() as u64);
        let replaced = self.store.replace(path, bytes, before).await;
        // Even a failed change may have taken effect.
        self.forget(path);
        let Some(stored) = replaced? else {
            return Ok(false);
        };
        self.metrics.committed(started);
        self.count(path, stored, size);
        Ok(true)
    }

    /// Adds a stored object to the size of the store, if the object is new.
    pub(crate) fn count(&self, path: &CachePath, stored: Stored, size: u64) {
        if stored == Stored::Created {
            let paths = matches!(path, CachePath::NarInfo(_)).into();
            self.metrics.store.grew(size, paths);
        }
    }

    /// Drops what is kept in memory of an object that was changed.
    fn forget(&self, path: &CachePath) {
        if let CachePath::NarInfo(hash) = path {
            self.narinfos.forget(hash);
        }
    }
}
