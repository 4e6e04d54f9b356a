//! Executes a plan, and keeps objects that are used in the meantime.
//!
//! Objects are used and uploaded after the plan was made. So each removal checks the last use again
//! ([`crate::store::Store::remove`]). A path that was used again is kept with all its references;
//! that is still possible, because referrers are removed before their references. NARs are removed
//! after all narinfos, once the removal of the narinfos is durable.

use std::collections::HashSet;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::plan::{Plan, Reason, Removal};
use crate::cache::{Actor, Cache};
use crate::inventory::{Inventory, visit_reachable};
use crate::nix::{CachePath, StorePath};
use crate::store::{Removed, StoreError};

/// The result of executing a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanOutcome {
    /// The number of removed store paths.
    pub paths: usize,
    /// The number of removed NARs and logs.
    pub shared: usize,
    /// The number of other removed objects.
    pub unowned: usize,
    /// Bytes in the removed objects.
    pub freed: u64,
    /// The number of planned store paths that were kept because they, or paths that refer to them,
    /// were used meanwhile.
    pub kept_in_use: usize,
    /// Whether the execution was stopped before its end.
    pub stopped: bool,
}

/// The number of removals that are announced to the store together, so that a bucket gets fewer
/// requests. A use of an announced object waits until the whole batch has been tried.
const ANNOUNCED_REMOVALS: usize = 32;

/// Returns all objects that a removal removes.
fn objects_of(inventory: &Inventory, removal: &Removal) -> Vec<CachePath> {
    let (first, side_files) = match *removal {
        Removal::Path(index, _) => {
            let path = &inventory.paths[index];
            (CachePath::NarInfo(path.store_path.hash()), path.side_files.as_slice())
        }
        Removal::Shared(index, _) => {
            let object = &inventory.shared[index];
            (object.path.clone(), object.side_files.as_slice())
        }
        Removal::Unowned(index, _) => (inventory.unowned[index].path.clone(), [].as_slice()),
    };
    std::iter::once(first).chain(side_files.iter().cloned()).collect()
}

/// Executes plans for one inventory.
pub(super) struct Executor<'a> {
    pub cache: &'a Cache,
    /// The actor in the audit log.
    pub actor: &'a Actor,
    pub inventory: &'a Inventory,
    /// Objects that were used after this time are kept.
    pub unused_since: SystemTime,
}

impl Executor<'_> {
    /// Executes `plan`. `stop` ends the execution between two removals; `on_progress` receives the
    /// number of finished removals.
    pub(super) async fn execute(
        &self,
        plan: &Plan,
        stop: &CancellationToken,
        mut on_progress: impl FnMut(u64),
    ) -> Result<PlanOutcome, StoreError> {
        let Self { cache, inventory, .. } = *self;
        let mut outcome = PlanOutcome::default();
        // Paths that were used meanwhile, and their closures.
        let mut needed = vec![false; inventory.paths.len()];
        // Shared objects of needed paths. Computed once all paths have been tried.
        let mut still_shared = None;
        let (mut narinfos_are_removed, mut unannounced) = (false, 0);
        for (done, removal) in plan.removals.iter().enumerate() {
            if stop.is_cancelled() {
                outcome.stopped = true;
                break;
            }
            let is_shared = matches!(removal, Removal::Shared(..));
            if is_shared && !std::mem::replace(&mut narinfos_are_removed, true) {
                // Otherwise a narinfo could reappear after a power cut, but its NAR would not.
                cache.store().sync_removals().await?;
                unannounced = done;
            }
            if done == unannounced {
                let next = plan.removals.iter().skip(done).take(ANNOUNCED_REMOVALS);
                let next: Vec<_> =
                    next.flat_map(|removal| objects_of(inventory, removal)).collect();
                cache.store().will_remove(&next).await?;
                unannounced = done + ANNOUNCED_REMOVALS;
            }
            match *removal {
                Removal::Path(index, _) if needed[index] => outcome.kept_in_use += 1,
                Removal::Path(index, reason) => {
                    let path = &inventory.paths[index];
                    let narinfo = CachePath::NarInfo(path.store_path.hash());
                    if self.remove(&narinfo).await? == Removed::InUse {
                        outcome.kept_in_use += 1;
                        let from = u32::try_from(index).expect("the inventory has u32 indices");
                        visit_reachable(inventory, from, |at| {
                            !std::mem::replace(&mut needed[at], true)
                        });
                    } else {
                        self.remove_all(&path.side_files).await?;
                        outcome.paths += 1;
                        outcome.freed += path.size;
                        self.log(&narinfo, Some(&path.store_path), path.size, reason);
                    }
                }
                Removal::Shared(index, reason) => {
                    let still_shared = still_shared.get_or_insert_with(|| {
                        let needed = (0..needed.len()).filter(|&path| needed[path]);
                        needed.flat_map(|path| inventory.shared_by(path)).collect::<HashSet<_>>()
                    });
                    let object = &inventory.shared[index];
                    if !still_shared.contains(&index)
                        && self.remove(&object.path).await? != Removed::InUse
                    {
                        self.remove_all(&object.side_files).await?;
                        outcome.shared += 1;
                        outcome.freed += object.size;
                        self.log(&object.path, None, object.size, reason);
                    }
                }
                Removal::Unowned(index, reason) => {
                    let object = &inventory.unowned[index];
                    if self.remove(&object.path).await? != Removed::InUse {
                        outcome.unowned += 1;
                        outcome.freed += object.size;
                        self.log(&object.path, None, object.size, reason);
                    }
                }
            }
            on_progress(done as u64 + 1);
        }
        cache.store().sync_removals().await?;
        Ok(outcome)
    }

    async fn remove(&self, path: &CachePath) -> Result<Removed, StoreError> {
        self.cache.remove(path, self.unused_since).await
    }

    async fn remove_all(&self, paths: &[CachePath]) -> Result<(), StoreError> {
        for path in paths {
            // A side file that was uploaded again meanwhile is in use, and is kept.
            self.remove(path).await?;
        }
        Ok(())
    }

    fn log(&self, path: &CachePath, store_path: Option<&StorePath>, size: u64, reason: Reason) {
        self.cache.metrics().store.shrank(size, store_path.is_some().into());
        let store_path = store_path.map(|path| self.cache.info().store_dir.join(path));
        self.actor.log_removal(path, store_path.as_deref(), size, reason.as_str());
    }
}
