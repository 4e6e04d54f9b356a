//! Executes a plan, and keeps objects that are used in the meantime.
//!
//! Objects are used and uploaded after the plan was made. So each removal checks the last use again
//! ([`crate::store::Store::remove`]). A path that was used again is kept with all its references;
//! that is still possible, because referrers are removed before their references. NARs are removed
//! after all narinfos, once the removal of the narinfos is durable.

use std::collections::HashSet;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::inventory::Inventory;
use super::plan::{Limits, Plan, Reason, Removal, reach};
use crate::cache::Cache;
use crate::nix::{CachePath, StorePath};
use crate::store::{Removed, StoreError};

/// The result of executing a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Store paths that are gone.
    pub paths: usize,
    /// NARs and logs that are gone.
    pub shared: usize,
    /// Other objects that are gone.
    pub loose: usize,
    /// The bytes of the removed objects.
    pub freed: u64,
    /// Paths that were to go, and stay because they, or what needs them, were used.
    pub given_way: usize,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// The number of removals that are announced together. A use of one of them waits until all have
/// been tried.
const TOGETHER: usize = 32;

/// Removals that are announced together.
fn objects_of(inventory: &Inventory, removal: &Removal) -> Vec<CachePath> {
    let (first, sides) = match *removal {
        Removal::Path(index, _) => {
            let path = &inventory.paths[index];
            (CachePath::NarInfo(path.store_path.hash()), path.sides.as_slice())
        }
        Removal::Shared(index, _) => {
            let object = &inventory.shared[index];
            (object.path.clone(), object.sides.as_slice())
        }
        Removal::Loose(index, _) => (inventory.loose[index].path.clone(), [].as_slice()),
    };
    std::iter::once(first).chain(sides.iter().cloned()).collect()
}

impl Cache {
    /// Executes `plan`, but keeps objects that were used within the grace period before `now`.
    /// `stop` ends it between two removals; `progress` gets the number of finished removals.
    pub async fn apply(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        limits: &Limits,
        now: SystemTime,
        stop: &CancellationToken,
        progress: impl FnMut(u64),
    ) -> Result<Outcome, StoreError> {
        let unused_since = now.checked_sub(limits.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        self.carry_out(inventory, plan, unused_since, stop, progress).await
    }

    /// Executes `plan`, but keeps objects that were used after `unused_since`.
    pub(in crate::cache) async fn carry_out(
        &self,
        inventory: &Inventory,
        plan: &Plan,
        unused_since: SystemTime,
        stop: &CancellationToken,
        mut progress: impl FnMut(u64),
    ) -> Result<Outcome, StoreError> {
        let mut outcome = Outcome::default();
        // Paths that turned out to be needed.
        let mut needed = vec![false; inventory.paths.len()];
        // Shared objects that belong to one of them; known when all paths have been tried.
        let mut still_shared = None;
        let (mut narinfos_are_gone, mut unsaid) = (false, 0);
        for (done, removal) in plan.removals.iter().enumerate() {
            if stop.is_cancelled() {
                outcome.stopped = true;
                break;
            }
            let is_shared = matches!(removal, Removal::Shared(..));
            if is_shared && !std::mem::replace(&mut narinfos_are_gone, true) {
                // A power cut must not bring a narinfo back whose NAR is gone.
                self.store.sync_removals().await?;
                unsaid = done;
            }
            if done == unsaid {
                let next = plan.removals.iter().skip(done).take(TOGETHER);
                let next: Vec<_> =
                    next.flat_map(|removal| objects_of(inventory, removal)).collect();
                self.store.will_remove(&next).await?;
                unsaid = done + TOGETHER;
            }
            match *removal {
                Removal::Path(index, _) if needed[index] => outcome.given_way += 1,
                Removal::Path(index, reason) => {
                    let path = &inventory.paths[index];
                    let hash = path.store_path.hash();
                    let narinfo = CachePath::NarInfo(hash);
                    let removed = self.store.remove(&narinfo, unused_since).await?;
                    self.hot.forget(&hash);
                    if removed == Removed::InUse {
                        outcome.given_way += 1;
                        let from = u32::try_from(index).expect("it was counted in u32");
                        reach(inventory, from, |at| !std::mem::replace(&mut needed[at], true));
                    } else {
                        self.remove_all(&path.sides, unused_since).await?;
                        outcome.paths += 1;
                        outcome.freed += path.size;
                        self.log_removal(&narinfo, Some(&path.store_path), path.size, reason);
                    }
                }
                Removal::Shared(index, reason) => {
                    let still_shared = still_shared.get_or_insert_with(|| {
                        let needed = (0..needed.len()).filter(|&path| needed[path]);
                        needed.flat_map(|path| inventory.shared_by(path)).collect::<HashSet<_>>()
                    });
                    let object = &inventory.shared[index];
                    if !still_shared.contains(&index)
                        && self.store.remove(&object.path, unused_since).await? != Removed::InUse
                    {
                        self.remove_all(&object.sides, unused_since).await?;
                        outcome.shared += 1;
                        outcome.freed += object.size;
                        self.log_removal(&object.path, None, object.size, reason);
                    }
                }
                Removal::Loose(index, reason) => {
                    let object = &inventory.loose[index];
                    if self.store.remove(&object.path, unused_since).await? != Removed::InUse {
                        outcome.loose += 1;
                        outcome.freed += object.size;
                        self.log_removal(&object.path, None, object.size, reason);
                    }
                }
            }
            progress(done as u64 + 1);
        }
        self.store.sync_removals().await?;
        Ok(outcome)
    }

    fn log_removal(
        &self,
        path: &CachePath,
        store_path: Option<&StorePath>,
        size: u64,
        reason: Reason,
    ) {
        self.metrics.store.shrank(size, store_path.is_some().into());
        let store_path = store_path.map(|path| self.info.store_dir.join(path));
        self.agent.log_removal(path, store_path.as_deref(), size, reason);
    }

    async fn remove_all(
        &self,
        paths: &[CachePath],
        unused_since: SystemTime,
    ) -> Result<(), StoreError> {
        for path in paths {
            // An object that was uploaded again has no path for a while.
            self.store.remove(path, unused_since).await?;
        }
        Ok(())
    }
}
