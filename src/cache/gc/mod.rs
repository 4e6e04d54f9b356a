//! Keeps the cache within its limits without breaking a closure.
//!
//! `inventory` reads the contents of the cache. `plan` is a pure function of the inventory, the
//! pins, the limits and the time; it decides which objects are removed, and in which order. `apply`
//! executes the plan, and keeps objects that are used in the meantime. `pins` are the paths that an
//! operator wants to keep.

mod apply;
mod collector;
mod inventory;
mod measure;
mod pins;
mod plan;
mod preview;

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use apply::Outcome;
pub use inventory::{HeldObject, HeldPath, Inventory, InventoryError, Unparsed};
pub use pins::{Pin, PinError};
pub use plan::{Analysis, Kept, Limits, Plan, Reason, Removal, Verdict};
pub(super) use plan::{groups, reach};
pub use preview::{Going, Name, Sum};

use super::{Cache, Progress};
use crate::store::{CollectionLock, StoreError, background};

/// Objects that were used or uploaded within this time are never removed: a build may still be
/// uploading their referrers, and a client may still be downloading their references.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// The time for which Nix caches positive lookups (`narinfo-cache-positive-ttl` in Nix's
/// `src/libstore/nar-info-disk-cache.cc`).
pub const CLIENTS_REMEMBER: Duration = Duration::from_secs(30 * 24 * 3600);

/// A failed collection.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Another process or task is collecting in the same cache.
    #[error("another collection is running in this cache; try again when it has finished")]
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

/// The numbers of a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Bytes in all objects before it.
    pub size_before: u64,
    /// Bytes in all objects after it.
    pub size_after: u64,
    /// Store paths that are gone.
    pub paths: usize,
    /// NARs and logs that are gone.
    pub shared: usize,
    /// Other objects that are gone.
    pub loose: usize,
    /// Store paths that were to go and were used in the meantime, and what they need.
    pub given_way: usize,
    /// By how many bytes the cache is still above its limit.
    pub over_limit: u64,
    /// Narinfos that do not parse.
    pub unparsed_narinfos: Unparsed,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

impl Cache {
    /// Takes the collection lock. Returns `None` if another collection holds it.
    pub async fn lock_collection(&self) -> Result<Option<CollectionLock>, StoreError> {
        self.store.private_files().lock_collection().await
    }

    /// Returns a readable name of the holder of the collection lock, if the store knows it.
    pub async fn collection_lock_holder(&self) -> Result<Option<String>, StoreError> {
        self.store.private_files().collection_lock_holder().await
    }

    /// Breaks the collection lock, in stores where it outlives its holder.
    pub async fn break_collection_lock(&self) -> Result<(), StoreError> {
        self.store.private_files().break_collection_lock().await
    }

    /// Removes what the limits say, as it is at `now`. `stop` ends it between two removals.
    pub async fn collect(
        &self,
        limits: &Limits,
        now: SystemTime,
        stop: &CancellationToken,
    ) -> Result<Report, CollectError> {
        self.collect_step_by_step(limits, now, stop, |_| {}).await
    }

    /// Does the same, and reports to `progress`.
    pub async fn collect_step_by_step(
        &self,
        limits: &Limits,
        now: SystemTime,
        stop: &CancellationToken,
        mut progress: impl FnMut(Progress),
    ) -> Result<Report, CollectError> {
        let _lock = self.lock_collection().await?.ok_or(CollectError::Busy)?;
        let inventory = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(CollectError::Stopped),
            inventory = self.inventory(|objects| progress(Progress::Found(objects))) => inventory?.complete()?,
        };
        self.metrics.store.set_totals(inventory.size(), inventory.paths.len() as u64);
        let pins = self.pins().await?;
        let (inventory, plan) = planned(inventory, pins, *limits, now).await?;
        let of = plan.removals.len() as u64;
        let removed = |done| progress(Progress::Done { done, of });
        let outcome = self.apply(&inventory, &plan, limits, now, stop, removed).await;
        let report = outcome.map(|outcome| Report::new(&inventory, &plan, &outcome));
        // So many objects take their time, too.
        background::run("forgetting", move || drop((inventory, plan))).await?;
        Ok(report?)
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

impl Report {
    /// What became of `plan`, made from `inventory`.
    pub fn new(inventory: &Inventory, plan: &Plan, outcome: &Outcome) -> Self {
        let size_after = plan.size_before - outcome.freed;
        Self {
            size_before: plan.size_before,
            size_after,
            paths: outcome.paths,
            shared: outcome.shared,
            loose: outcome.loose,
            given_way: outcome.given_way,
            over_limit: plan.max_size.map_or(0, |limit| size_after.saturating_sub(limit)),
            unparsed_narinfos: inventory.unparsed,
            stopped: outcome.stopped,
        }
    }
}
