//! Removes the store paths that an operator names, however recently they were used.

use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::collector::Collector;
use super::execute::{Executor, Outcome};
use super::plan::{Analysis, Plan, Reason, Removal};
use crate::inventory::{Inventory, groups};
use crate::nix::{CachePath, StorePathHash};
use crate::store::StoreError;

/// The treatment of referrers of the removed paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Referrers {
    /// Refuse, if there are any: closures stay whole.
    Refuse,
    /// They are removed too.
    Remove,
}

/// The reason why a path cannot be removed. Paths are indices in the inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is not here.
    Absent(StorePathHash),
    /// A pin keeps it.
    Pinned {
        /// The path.
        path: usize,
        /// The pin's place.
        pin: usize,
        /// What the pin names, which is the path or needs it.
        by: usize,
    },
    /// Other paths need it.
    Needed {
        /// The path.
        path: usize,
        /// What refers to it and was not named.
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
    let mut going = vec![false; inventory.paths.len()];
    let mut stack = Vec::new();
    for &hash in wanted {
        match inventory.find(hash) {
            Some(path) => stack.push(path),
            None => refusals.push(Refusal::Absent(hash)),
        }
    }
    while let Some(path) = stack.pop() {
        if !std::mem::replace(&mut going[path], true) && referrers == Referrers::Remove {
            stack.extend(referred_by[path].iter().map(|&by| by as usize));
        }
    }
    for path in (0..going.len()).filter(|&path| going[path]) {
        let needed_by = referred_by[path].iter().map(|&by| by as usize);
        let needed_by: Vec<usize> = needed_by.filter(|&by| !going[by]).collect();
        // Pinned first: removing what needs it as well would not help.
        if let Some((pin, by)) = analysis.pinned_by(path) {
            refusals.push(Refusal::Pinned { path, pin, by });
        } else if !needed_by.is_empty() {
            refusals.push(Refusal::Needed { path, by: needed_by });
        }
    }
    if refusals.is_empty() { Ok(plan(inventory, &going)) } else { Err(refusals) }
}

fn plan(inventory: &Inventory, going: &[bool]) -> Plan {
    // Referrers come first, so that readers see whole closures at every moment.
    let referrers_first = groups(inventory).into_iter().rev().flatten().map(|path| path as usize);
    let mut removals: Vec<Removal> = referrers_first
        .filter(|&path| going[path])
        .map(|path| Removal::Path(path, Reason::Request))
        .collect();
    let mut owned = vec![false; inventory.shared.len()];
    let mut needed = vec![false; inventory.shared.len()];
    for (path, goes) in going.iter().enumerate() {
        let owners = if *goes { &mut owned } else { &mut needed };
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

/// For each path, those that refer to it.
fn referred_by(inventory: &Inventory) -> Vec<Vec<u32>> {
    let mut referred_by = vec![Vec::new(); inventory.paths.len()];
    for (from, path) in inventory.paths.iter().enumerate() {
        let from = u32::try_from(from).expect("fewer paths than u32 has numbers");
        path.references.iter().for_each(|&to| referred_by[to as usize].push(from));
    }
    referred_by
}

impl Collector {
    /// Executes a `plan` of [`plan_removal`]. `stop` ends it between two removals; `on_progress` gets
    /// the number of finished removals. The caller must hold the collection lock.
    pub async fn delete(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        stop: &CancellationToken,
        on_progress: impl FnMut(u64),
    ) -> Result<Outcome, StoreError> {
        let Self { cache, actor } = self;
        // In the future, so that no use keeps an object.
        let unused_since = SystemTime::now() + Duration::from_secs(100 * 365 * 86_400);
        let executor = Executor { cache, actor, inventory, unused_since };
        let outcome = executor.execute(plan, stop, on_progress).await?;
        for removal in &plan.removals {
            if let Removal::Path(index, _) = *removal {
                let hash = inventory.paths[index].store_path.hash();
                self.remove_without_nar(hash, unused_since).await?;
            }
        }
        Ok(outcome)
    }

    /// Removes a narinfo that was uploaded again during the removal, when its NAR was still there, and
    /// that has no NAR now.
    async fn remove_without_nar(
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
