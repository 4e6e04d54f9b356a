//! Objects that may be lost after a failed sync.
//!
//! A directory whose sync failed may lose the names that were created since the previous sync, and
//! the kernel reports the failure only once. So the failure is remembered here until a later sync
//! succeeds. Until then no upload that needs the directory is acknowledged, and the objects whose
//! uploads failed are not served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::folder::split;

/// The maximum number of objects that are remembered for a directory. With more, all objects in the
/// directory are in doubt.
const DOUBTED_OBJECTS_LIMIT: usize = 4096;

/// The minimum pause between retries of a failed sync by readers.
const SYNC_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Directories whose last sync failed, and the objects in them whose uploads failed with it.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// Whether `folders` has entries. Each read checks this without a lock.
    any: AtomicBool,
    folders: Mutex<UnsyncedFolders>,
}

#[derive(Debug, Default)]
struct UnsyncedFolders {
    by_key: BTreeMap<String, Doubt>,
    /// The number of failures, so that a sync that began before a failure does not clear it.
    failures: u64,
}

#[derive(Debug)]
struct Doubt {
    failure: u64,
    failed: Instant,
    objects: BTreeSet<String>,
    /// Whether all objects in the directory are in doubt, because too many uploads failed.
    all: bool,
}

/// The number of failures before a sync.
#[derive(Debug, Clone, Copy)]
pub(super) struct SyncStart(u64);

impl Unsynced {
    /// Must be called before a directory is synced.
    pub(super) fn begin(&self) -> SyncStart {
        if !self.any.load(Ordering::SeqCst) {
            return SyncStart(0);
        }
        SyncStart(self.lock().failures)
    }

    /// Records the result of a sync of the directory `folder`.
    pub(super) fn end(&self, folder: &str, started: SyncStart, synced: bool) {
        if synced && !self.any.load(Ordering::SeqCst) {
            return;
        }
        let mut folders = self.lock();
        if synced {
            if folders.by_key.get(folder).is_some_and(|doubt| doubt.failure <= started.0) {
                folders.by_key.remove(folder);
            }
        } else {
            folders.failures += 1;
            let (failure, failed) = (folders.failures, Instant::now());
            let objects = BTreeSet::new();
            let new = Doubt { failure, failed, objects, all: false };
            let doubt = folders.by_key.entry(folder.to_owned()).or_insert(new);
            (doubt.failure, doubt.failed) = (failure, failed);
        }
        self.any.store(!folders.by_key.is_empty(), Ordering::SeqCst);
    }

    /// Forgets the failure of a directory that was removed.
    pub(super) fn forget(&self, folder: &str) {
        let mut folders = self.lock();
        folders.by_key.remove(folder);
        self.any.store(!folders.by_key.is_empty(), Ordering::SeqCst);
    }

    /// Records that the upload of `key` failed because of `folder`.
    pub(super) fn doubt(&self, folder: &str, key: &str) {
        if let Some(doubt) = self.lock().by_key.get_mut(folder) {
            if doubt.objects.len() < DOUBTED_OBJECTS_LIMIT {
                doubt.objects.insert(key.to_owned());
            } else {
                doubt.all = true;
            }
        }
    }

    /// Whether the last sync of the directory `folder` failed.
    pub(super) fn has(&self, folder: &str) -> bool {
        self.any.load(Ordering::SeqCst) && self.lock().by_key.contains_key(folder)
    }

    /// Returns all directories whose last sync failed.
    pub(super) fn folders(&self) -> Vec<String> {
        if !self.any.load(Ordering::SeqCst) {
            return Vec::new();
        }
        self.lock().by_key.keys().cloned().collect()
    }

    /// Returns the directory because of which the upload of `key` failed, and whether a retry of
    /// its sync is due.
    pub(super) fn in_doubt(&self, key: &str) -> Option<(String, bool)> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let folders = self.lock();
        let own = split(key).0;
        let refused = |folder: &str, doubt: &Doubt| {
            doubt.objects.contains(key) || (doubt.all && folder == own)
        };
        let (folder, doubt) =
            folders.by_key.iter().find(|(folder, doubt)| refused(folder, doubt))?;
        Some((folder.clone(), doubt.failed.elapsed() >= SYNC_RETRY_INTERVAL))
    }

    fn lock(&self) -> MutexGuard<'_, UnsyncedFolders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_in_doubt_until_a_sync_that_began_after_its_failure_succeeds() {
        let unsynced = Unsynced::default();
        let early = unsynced.begin();
        let started = unsynced.begin();
        unsynced.end("nar", started, false);
        unsynced.doubt("nar", "nar/x");
        unsynced.doubt("log", "log/x");
        unsynced.end("log", unsynced.begin(), true);
        unsynced.end("nar", early, true);
        assert!(unsynced.has("nar") && !unsynced.has("log"));
        assert_eq!(unsynced.in_doubt("nar/x"), Some(("nar".to_owned(), false)));
        assert_eq!(unsynced.in_doubt("nar/y"), None);
        unsynced.end("nar", unsynced.begin(), true);
        assert_eq!((unsynced.folders(), unsynced.in_doubt("nar/x")), (Vec::new(), None));
    }

    #[test]
    fn above_the_limit_all_objects_in_the_directory_are_in_doubt() {
        let unsynced = Unsynced::default();
        unsynced.end("nar", unsynced.begin(), false);
        (0..=DOUBTED_OBJECTS_LIMIT)
            .for_each(|number| unsynced.doubt("nar", &format!("nar/{number}")));
        assert!(unsynced.in_doubt("nar/another").is_some());
        unsynced.forget("nar");
        assert_eq!(unsynced.in_doubt("nar/1"), None);
    }
}
