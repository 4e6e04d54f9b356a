//! Removes the store paths that an operator names, however recently they were used.

use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::collector::Collector;
use super::execute::{Executor, PlanOutcome};
use super::plan::{Analysis, Plan, Reason, Removal};
use crate::inventory::{Inventory, reference_groups};
use crate::nix::{CachePath, StorePathHash};
use crate::store::StoreError;

/// The treatment of referrers of the removed paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Referrers {
    /// The removal is refused if there are any, so that closures stay complete.
    Refuse,
    /// Referrers are removed, too.
    Remove,
}

/// The reason why a path cannot be removed. Paths are indices in the inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The path is not in the cache.
    Absent(StorePathHash),
    /// A pin keeps the path.
    Pinned {
        /// The path.
        path: usize,
        /// The index of the pin.
        pin: usize,
        /// The index of the pinned path: the path itself, or a referrer.
        by: usize,
    },
    /// Other paths refer to the path.
    Needed {
        /// The path.
        path: usize,
        /// The referrers that are not removed.
        by: Vec<usize>,
    },
}

/// Plans the removal of the paths with these hash parts, or returns the reasons against it.
pub fn plan_removal(
    analysis: &Analysis<'_>,
    wanted: &[StorePathHash],
    referrers: Referrers,
) -> Result<Plan, Vec<Refusal>> {
    let inventory = analysis.inventory();
    let referred_by = referred_by(inventory);
    let mut refusals = Vec::new();
    let mut removed = vec![false; inventory.paths.len()];
    let mut stack = Vec::new();
    for &hash in wanted {
        match inventory.find(hash) {
            Some(path) => stack.push(path),
            None => refusals.push(Refusal::Absent(hash)),
        }
    }
    while let Some(path) = stack.pop() {
        if !std::mem::replace(&mut removed[path], true) && referrers == Referrers::Remove {
            stack.extend(referred_by[path].iter().map(|&by| by as usize));
        }
    }
    for path in (0..removed.len()).filter(|&path| removed[path]) {
        let needed_by = referred_by[path].iter().map(|&by| by as usize);
        let needed_by: Vec<usize> = needed_by.filter(|&by| !removed[by]).collect();
        // A pin is reported first: removing the referrers as well would not help.
        if let Some((pin, by)) = analysis.pinned_by(path) {
            refusals.push(Refusal::Pinned { path, pin, by });
        } else if !needed_by.is_empty() {
            refusals.push(Refusal::Needed { path, by: needed_by });
        }
    }
    if refusals.is_empty() { Ok(plan(inventory, &removed)) } else { Err(refusals) }
}

fn plan(inventory: &Inventory, removed: &[bool]) -> Plan {
    // Referrers come first, so that clients see complete closures at every moment.
    let referrers_first =
        reference_groups(inventory).into_iter().rev().flatten().map(|path| path as usize);
    let mut removals: Vec<Removal> = referrers_first
        .filter(|&path| removed[path])
        .map(|path| Removal::Path(path, Reason::Request))
        .collect();
    let mut owned = vec![false; inventory.shared.len()];
    let mut needed = vec![false; inventory.shared.len()];
    for (path, is_removed) in removed.iter().enumerate() {
        let owners = if *is_removed { &mut owned } else { &mut needed };
        inventory.shared_by(path).for_each(|object| owners[object] = true);
    }
    inventory.referenced_by_broken.iter().for_each(|&object| needed[object as usize] = true);
    let shared = (0..owned.len()).filter(|&object| owned[object] && !needed[object]);
    removals.extend(shared.map(|object| Removal::Shared(object, Reason::Request)));
    let freed = removals.iter().map(|removal| match *removal {
        Removal::Path(path, _) => inventory.paths[path].size,
        Removal::Shared(object, _) => inventory.shared[object].size,
        Removal::Unowned(object, _) => inventory.unowned[object].size,
    });
    let size_before = inventory.size();
    Plan { size_before, size_after: size_before - freed.sum::<u64>(), max_size: None, removals }
}

/// Returns the referrers of each path.
fn referred_by(inventory: &Inventory) -> Vec<Vec<u32>> {
    let mut referred_by = vec![Vec::new(); inventory.paths.len()];
    for (from, path) in inventory.paths.iter().enumerate() {
        let from = u32::try_from(from).expect("fewer paths than u32 has numbers");
        path.references.iter().for_each(|&to| referred_by[to as usize].push(from));
    }
    referred_by
}

impl Collector {
    /// Executes a plan of [`plan_removal`]. `stop` ends the execution between two removals;
    /// `on_progress` receives the number of finished removals. The caller must hold the collection
    /// lock.
    pub async fn delete(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        stop: &CancellationToken,
        on_progress: impl FnMut(u64),
    ) -> Result<PlanOutcome, StoreError> {
        let Self { cache, actor } = self;
        // A time in the future, so that no use keeps an object.
        let unused_since = SystemTime::now() + Duration::from_secs(100 * 365 * 86_400);
        let executor = Executor { cache, actor, inventory, unused_since };
        let outcome = executor.execute(plan, stop, on_progress).await?;
        for removal in &plan.removals {
            if let Removal::Path(index, _) = *removal {
                let hash = inventory.paths[index].store_path.hash();
                self.remove_narinfo_without_nar(hash, unused_since).await?;
            }
        }
        Ok(outcome)
    }

    /// Removes the narinfo of a path if its NAR is missing. The narinfo may have been uploaded
    /// again during the removal, before the NAR was removed.
    async fn remove_narinfo_without_nar(
        &self,
        hash: StorePathHash,
        unused_since: SystemTime,
    ) -> Result<(), StoreError> {
        let path = CachePath::NarInfo(hash);
        let Some(named) = self.cache.read_named(&path).await? else {
            return Ok(());
        };
        let Some(&nar) = named.nars.last() else {
            return Ok(());
        };
        let store = self.cache.store();
        if store.head(&CachePath::Nar(nar)).await?.is_none() {
            self.cache.remove(&path, unused_since).await?;
            store.sync_removals().await?;
        }
        Ok(())
    }
}
