//! The negative cache: absent narinfos, without a lookup in the file system for each request.
//!
//! Most names that substituters request are absent, and the kernel walks a path for each of them.
//! But every new name in a directory changes the directory's modification time: as long as it is
//! unchanged, all absent names are still absent, whichever process writes here. Reading this time
//! costs a quarter of the walk (0.3 µs instead of 1.3 µs on Linux 6.18).

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use rustix::fs::{AtFlags, StatxFlags};

use crate::nix::{CachePath, StorePathHash};

/// The capacity in names, at about 100 bytes each.
const NAMES_LIMIT: usize = 32 * 1024;

/// The age from which a modification time proves that nothing changed since. A directory can change
/// twice with the same modification time, which has the resolution of the kernel's clock (up to 10
/// ms) and of the file system (up to 2 s).
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// The names of absent narinfos.
#[derive(Debug)]
pub(super) struct NegativeCache {
    names: Cache<StorePathHash, Stamp>,
}

/// The modification time of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(SystemTime);

/// The metadata of the directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DirectoryState {
    /// `None` if absence cannot be derived from the modification time.
    pub stamp: Option<Stamp>,
    /// Whether the directory was removed.
    pub is_removed: bool,
}

impl NegativeCache {
    pub(super) fn new() -> Self {
        Self { names: Cache::new(NAMES_LIMIT) }
    }

    /// Returns the state of the directory. Must be called before `path` is looked up in it.
    pub(super) fn directory_state(root: &OwnedFd, path: &CachePath) -> DirectoryState {
        let CachePath::NarInfo(_) = path else {
            return DirectoryState::default();
        };
        // The descriptor is open, so nothing is read from the disk, and the call does not block.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let wanted = StatxFlags::MTIME | StatxFlags::NLINK;
        let Ok(found) = rustix::fs::statx(root, "", flags, wanted) else {
            return DirectoryState::default();
        };
        if found.stx_nlink == 0 {
            return DirectoryState { stamp: None, is_removed: true };
        }
        let changed = found.stx_mtime;
        let since = u64::try_from(changed.tv_sec).ok().map(|s| Duration::new(s, changed.tv_nsec));
        DirectoryState {
            stamp: since.map(|since| Stamp(SystemTime::UNIX_EPOCH + since)),
            is_removed: false,
        }
    }

    /// Whether `path` was absent when the directory was as it is now.
    pub(super) fn contains(&self, path: &CachePath, now: Option<Stamp>) -> bool {
        match (path, now) {
            (CachePath::NarInfo(hash), Some(now)) => self.names.get(hash) == Some(now),
            _ => false,
        }
    }

    /// Remembers that `path` was absent in a lookup after the state `before` of the directory.
    pub(super) fn insert(&self, path: &CachePath, before: Option<Stamp>) {
        if let (CachePath::NarInfo(hash), Some(before)) = (path, before)
            && before.is_settled(SystemTime::now())
        {
            self.names.insert(*hash, before);
        }
    }
}

impl Stamp {
    fn is_settled(self, now: SystemTime) -> bool {
        now.duration_since(self.0).is_ok_and(|age| age >= SETTLE_TIME)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;

    fn narinfo() -> CachePath {
        "0123456789abcdfghijklmnpqrsvwxyz.narinfo".parse().unwrap()
    }

    fn is_known_absent(cache: &NegativeCache, dir: &Path) -> bool {
        let root = OwnedFd::from(File::open(dir).unwrap());
        let stamp = NegativeCache::directory_state(&root, &narinfo()).stamp;
        let known = cache.contains(&narinfo(), stamp);
        cache.insert(&narinfo(), stamp);
        known
    }

    fn changed(dir: &Path, ago: Duration) {
        let when = SystemTime::now() - ago;
        File::open(dir).unwrap().set_modified(when).unwrap();
    }

    #[test]
    fn a_name_is_absent_until_the_directory_changes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = NegativeCache::new();
        changed(dir.path(), 2 * SETTLE_TIME);
        assert!(!is_known_absent(&cache, dir.path()));
        assert!(is_known_absent(&cache, dir.path()));
        fs::write(dir.path().join("another"), "").unwrap();
        assert!(!is_known_absent(&cache, dir.path()));
    }

    #[test]
    fn a_recently_changed_directory_proves_no_absence() {
        let dir = tempfile::tempdir().unwrap();
        let cache = NegativeCache::new();
        changed(dir.path(), SETTLE_TIME / 4);
        assert!(!is_known_absent(&cache, dir.path()));
        assert!(!is_known_absent(&cache, dir.path()));
    }

    #[test]
    fn a_removed_directory_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        assert!(!NegativeCache::directory_state(&root, &narinfo()).is_removed);
        fs::remove_dir(dir.path()).unwrap();
        assert!(NegativeCache::directory_state(&root, &narinfo()).is_removed);
    }
}
