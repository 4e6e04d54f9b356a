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
use crate::inventory::{Inventory, reach};
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
    pub unowned: usize,
    /// The bytes of the removed objects.
    pub freed: u64,
    /// Planned paths that were kept because they, or paths that refer to them, were used meanwhile.
    pub kept_in_use: usize,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// The number of removals that are announced together. A use of one of them waits until all have
/// been tried.
const ANNOUNCED: usize = 32;

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
        Removal::Unowned(index, _) => (inventory.unowned[index].path.clone(), [].as_slice()),
    };
    std::iter::once(first).chain(sides.iter().cloned()).collect()
}

/// Executes plans that were made from an inventory.
pub(super) struct Executor<'a> {
    pub cache: &'a Cache,
    /// The actor in the audit log.
    pub actor: &'a Actor,
    pub inventory: &'a Inventory,
    /// Objects that were used after this time are kept.
    pub unused_since: SystemTime,
}

impl Executor<'_> {
    /// Executes `plan`. `stop` ends it between two removals; `on_progress` gets the number of finished
    /// removals.
    pub(super) async fn execute(
        &self,
        plan: &Plan,
        stop: &CancellationToken,
        mut on_progress: impl FnMut(u64),
    ) -> Result<Outcome, StoreError> {
        let Self { cache, inventory, .. } = *self;
        let mut outcome = Outcome::default();
        // Paths that turned out to be needed.
        let mut needed = vec![false; inventory.paths.len()];
        // Shared objects that belong to one of them; known when all paths have been tried.
        let mut still_shared = None;
        let (mut narinfos_are_gone, mut unannounced) = (false, 0);
        for (done, removal) in plan.removals.iter().enumerate() {
            if stop.is_cancelled() {
                outcome.stopped = true;
                break;
            }
            let is_shared = matches!(removal, Removal::Shared(..));
            if is_shared && !std::mem::replace(&mut narinfos_are_gone, true) {
                // A power cut must not bring a narinfo back whose NAR is gone.
                cache.store().sync_removals().await?;
                unannounced = done;
            }
            if done == unannounced {
                let next = plan.removals.iter().skip(done).take(ANNOUNCED);
                let next: Vec<_> =
                    next.flat_map(|removal| objects_of(inventory, removal)).collect();
                cache.store().will_remove(&next).await?;
                unannounced = done + ANNOUNCED;
            }
            match *removal {
                Removal::Path(index, _) if needed[index] => outcome.kept_in_use += 1,
                Removal::Path(index, reason) => {
                    let path = &inventory.paths[index];
                    let narinfo = CachePath::NarInfo(path.store_path.hash());
                    if self.remove(&narinfo).await? == Removed::InUse {
                        outcome.kept_in_use += 1;
                        let from = u32::try_from(index).expect("it was counted in u32");
                        reach(inventory, from, |at| !std::mem::replace(&mut needed[at], true));
                    } else {
                        self.remove_all(&path.sides).await?;
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
                        self.remove_all(&object.sides).await?;
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
            // An object that was uploaded again has no path for a while.
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
