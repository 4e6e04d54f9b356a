//! Collects garbage.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::execute::{Executor, PlanOutcome};
use super::pins::{Pin, PinError, Pins};
use super::plan::{Analysis, Limits, Plan};
use crate::cache::{Actor, Cache};
use crate::inventory::{Inventory, InventoryError, Progress, Unparsed};
use crate::store::{CollectionLock, StoreError, background};

/// The time for which Nix caches positive lookups (`narinfo-cache-positive-ttl` in Nix's
/// `src/libstore/nar-info-disk-cache.cc`).
pub const POSITIVE_LOOKUP_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// A failed collection.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Another process or task is collecting in the same cache.
    #[error(
        "a collection, deletion or repair is running in this cache; try again when it has finished"
    )]
    Busy,
    /// The collection was stopped during the inventory.
    #[error("stopped before anything was removed")]
    Stopped,
    /// The inventory failed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The pins could not be read.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The result of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Bytes in all objects before the collection.
    pub size_before: u64,
    /// Bytes in all objects after the collection.
    pub size_after: u64,
    /// The number of removed store paths.
    pub paths: usize,
    /// The number of removed NARs and logs.
    pub shared: usize,
    /// The number of other removed objects.
    #[serde(rename = "loose")]
    pub unowned: usize,
    /// The number of planned store paths that were kept because they, or paths that refer to them,
    /// were used meanwhile.
    #[serde(rename = "given_way")]
    pub kept_in_use: usize,
    /// The number of bytes by which the cache still exceeds its limit.
    pub over_limit: u64,
    /// The numbers of narinfos that do not parse.
    pub unparsed_narinfos: Unparsed,
    /// Whether the collection was stopped before its end.
    pub stopped: bool,
}

/// Removes objects from a cache. A clone collects in the same cache.
#[derive(Clone)]
pub struct Collector {
    pub(super) cache: Arc<Cache>,
    /// The actor in the audit log.
    pub(super) actor: Actor,
}

impl Collector {
    /// Creates the collector of a cache. The audit log names `actor`.
    pub fn new(cache: Arc<Cache>, actor: Actor) -> Self {
        Self { cache, actor }
    }

    /// Takes the collection lock. Returns `None` if another collection holds it.
    pub async fn lock(&self) -> Result<Option<CollectionLock>, StoreError> {
        self.cache.store().private_files().lock_collection().await
    }

    /// Returns a readable name of the holder of the collection lock, if the store knows it.
    pub async fn lock_holder(&self) -> Result<Option<String>, StoreError> {
        self.cache.store().private_files().collection_lock_holder().await
    }

    /// Breaks the collection lock, in stores where it outlives its holder.
    pub async fn break_lock(&self) -> Result<(), StoreError> {
        self.cache.store().private_files().break_collection_lock().await
    }

    /// Removes objects until the cache is within `limits` at `now`. `stop` ends the collection
    /// between two removals.
    pub async fn collect(
        &self,
        limits: &Limits,
        now: SystemTime,
        stop: &CancellationToken,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<GcReport, CollectError> {
        let cache = &*self.cache;
        let _lock = self.lock().await?.ok_or(CollectError::Busy)?;
        let found = |objects| on_progress(Progress::Found(objects));
        let inventory = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(CollectError::Stopped),
            inventory = cache.inventory(found) => inventory?.complete()?,
        };
        cache.metrics().store.set_totals(inventory.size(), inventory.paths.len() as u64);
        let pins = Pins::of(cache).list().await?;
        let (inventory, plan) = planned(inventory, pins, *limits, now).await?;
        let total = plan.removals.len() as u64;
        let removed = |done| on_progress(Progress::Done { done, total });
        let outcome = self.execute(&inventory, &plan, limits, now, stop, removed).await;
        let report = outcome.map(|outcome| GcReport::new(&inventory, &plan, &outcome));
        // Freeing the memory of many objects takes too long for a thread that serves requests.
        background::run("forgetting", move || drop((inventory, plan))).await?;
        Ok(report?)
    }

    /// Executes `plan`, but keeps objects that were used within the grace period before `now`.
    /// `stop` ends the execution between two removals; `on_progress` receives the number of
    /// finished removals. The caller must hold the collection lock.
    pub async fn execute(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        limits: &Limits,
        now: SystemTime,
        stop: &CancellationToken,
        on_progress: impl FnMut(u64),
    ) -> Result<PlanOutcome, StoreError> {
        let Self { cache, actor } = self;
        let unused_since = now.checked_sub(limits.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let executor = Executor { cache, actor, inventory, unused_since };
        executor.execute(plan, stop, on_progress).await
    }
}

/// Makes a plan on a background thread.
async fn planned(
    inventory: Inventory,
    pins: Vec<Pin>,
    limits: Limits,
    now: SystemTime,
) -> Result<(Inventory, Plan), StoreError> {
    background::run("planning", move || {
        let plan = Analysis::new(&inventory, &pins).plan(&limits, now);
        (inventory, plan)
    })
    .await
}

impl GcReport {
    /// Creates the report on `outcome`, the result of executing `plan`. The plan was made from
    /// `inventory`.
    pub fn new(inventory: &Inventory, plan: &Plan, outcome: &PlanOutcome) -> Self {
        let size_after = plan.size_before - outcome.freed;
        Self {
            size_before: plan.size_before,
            size_after,
            paths: outcome.paths,
            shared: outcome.shared,
            unowned: outcome.unowned,
            kept_in_use: outcome.kept_in_use,
            over_limit: plan.max_size.map_or(0, |limit| size_after.saturating_sub(limit)),
            unparsed_narinfos: inventory.unparsed,
            stopped: outcome.stopped,
        }
    }
}
