//! The directory of the store, which another directory can replace.
//!
//! All files are opened relative to a descriptor of the directory, which stays valid when the
//! directory is removed, renamed or mounted over. All of this happens to running daemons: `rm -rf`,
//! a backup that is moved into place, a disk that is mounted late. So the path is checked again, at
//! most once in [`PATH_CHECK_INTERVAL`]:
//!
//! - before an absence is reported, because the object may be in the new directory;
//! - before and after each batch of uploads, because readers must find acknowledged objects;
//! - in the background of reads that find an object.
//!
//! If another directory on the same disk has taken the place of the old one, it is opened; if the
//! directory is missing, it is created again, as at start. A directory on another disk is not used:
//! it may be on the root disk, under an empty mount point, which must not be filled. Then the store
//! is unusable until the right disk is back, or the daemon restarts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use bytes::Bytes;
use rustix::fs::FileType;
use rustix::io::Errno;
use tracing::{error, warn};

use super::folder;
use super::open_root::{OpenRoot, STAGING};
use crate::logging::with_causes;
use crate::store::error::UnusableDirectory;

/// The time after a check during which reads do not check the path again.
const PATH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time after which a missing directory is created again. It is missing for a moment if an
/// administrator replaces it with two moves.
const RECREATE_AFTER: Duration = Duration::from_secs(2);

/// The user of the directory, which decides what happens if the directory is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The daemon opens the directory that replaced it, or creates it.
    Daemon,
    /// The command fails: an operation must not start in one directory and continue in another.
    Command,
}

/// The directory of a store.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    role: Role,
    current: ArcSwap<OpenRoot>,
    epoch: Instant,
    /// The time of the last check of the path, in milliseconds since `epoch`; 0 if a new check is
    /// needed.
    checked_at: AtomicU64,
    /// The failure of the last check, if any.
    failure: ArcSwapOption<UnusableDirectory>,
    /// Held during a check for a reader, so that a disk that hangs blocks only one thread.
    checking: tokio::sync::Mutex<()>,
    is_checking_in_background: AtomicBool,
    watch: Mutex<PathWatch>,
    /// Texts that are stored in each directory that is opened.
    kept: Mutex<BTreeMap<String, Bytes>>,
}

#[derive(Debug, Default)]
struct PathWatch {
    missing_since: Option<Instant>,
}

/// A failed step of opening a directory.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}")]
pub struct OpenDirectoryError {
    doing: &'static str,
    path: String,
    source: io::Error,
}

fn failed(doing: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> OpenDirectoryError {
    move |source| OpenDirectoryError { doing, path: path.display().to_string(), source }
}

impl Root {
    /// Opens the directory at `path`. For a daemon, creates the directory if it is missing, and the
    /// folders in it.
    pub(super) fn open(path: &Path, role: Role) -> Result<Self, OpenDirectoryError> {
        if role == Role::Daemon {
            create_durably(path).map_err(failed("cannot create the directory", path.to_owned()))?;
        }
        let open = OpenRoot::open(path, 0)
            .map_err(failed("cannot open the directory", path.to_owned()))?;
        let root = Self {
            path: path.to_owned(),
            role,
            current: ArcSwap::from_pointee(open),
            epoch: Instant::now(),
            checked_at: AtomicU64::new(0),
            failure: ArcSwapOption::empty(),
            checking: tokio::sync::Mutex::default(),
            is_checking_in_background: AtomicBool::new(false),
            watch: Mutex::default(),
            kept: Mutex::default(),
        };
        if role == Role::Daemon {
            root.prepare(&root.current())?;
        }
        Ok(root)
    }

    /// Creates the folders and texts that a daemon needs in a directory.
    fn prepare(&self, open: &OpenRoot) -> Result<(), OpenDirectoryError> {
        let is_new = open.folder("nar").is_err();
        let nar = open.make_folder("nar");
        let nar = nar.map_err(failed("cannot create the directory", self.path.join("nar")))?;
        open.prepare_staging().map_err(failed("cannot prepare", self.path.join(STAGING)))?;
        if is_new {
            // An earlier attempt may have created the parent directories, and failed to sync them.
            sync_above(&self.path, open.device)
                .map_err(failed("cannot sync the parent directories of", self.path.clone()))?;
        }
        // A killed daemon may have renamed objects without syncing the directory. A client that
        // finds an object does not upload it again, so the directories are synced now.
        for (key, fd) in [("nar", nar.as_fd()), (".", open.as_fd())] {
            if let Err(error) = open.sync(key, fd) {
                warn!(%error, "cannot sync {}", self.path.join(key).display());
            }
        }
        for (key, text) in lock(&self.kept).iter() {
            if let Err(error) = open.keep(key, text) {
                warn!(%error, "cannot write {}", self.path.join(key).display());
            }
        }
        Ok(())
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Stores a text in each directory that is opened from now on. The current one has it already.
    pub(super) fn keep(&self, key: String, text: Bytes) {
        lock(&self.kept).insert(key, text);
    }

    /// Returns the open directory, without checking the path.
    pub(super) fn current(&self) -> Guard<Arc<OpenRoot>> {
        self.current.load()
    }

    fn millis(&self) -> u64 {
        // At least 1, because 0 means that a new check is needed.
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// Whether the last check of the path is less than [`PATH_CHECK_INTERVAL`] ago.
    fn is_recently_checked(&self) -> bool {
        let checked_at = self.checked_at.load(Ordering::SeqCst);
        let age = self.millis().saturating_sub(checked_at);
        checked_at != 0 && Duration::from_millis(age) < PATH_CHECK_INTERVAL
    }

    /// Returns the generation of the directory, as of the last check.
    fn known(&self) -> Result<u64, UnusableDirectory> {
        match &*self.failure.load() {
            Some(failure) => Err(UnusableDirectory::clone(failure)),
            None => Ok(self.current().generation),
        }
    }

    /// Discards the last check, because the directory seems to have been removed.
    pub(super) fn discard_check(&self) {
        if self.failure.load().is_none() {
            self.checked_at.store(0, Ordering::SeqCst);
        }
    }

    /// Returns the generation of the directory at the path, as of a check that is
    /// less than [`PATH_CHECK_INTERVAL`] ago.
    pub(super) async fn confirm(self: &Arc<Self>) -> Result<u64, UnusableDirectory> {
        if self.is_recently_checked() {
            return self.known();
        }
        let _checking = self.checking.lock().await;
        if self.is_recently_checked() {
            return self.known();
        }
        let root = Arc::clone(self);
        let checked_at = tokio::task::spawn_blocking(move || root.check_path()).await;
        let checked_at = checked_at
            .expect("checking a directory does not panic, and the pool outlives its tasks");
        checked_at.map(|open| open.generation)
    }

    /// Checks the path in the background, if it is due.
    pub(super) fn check_in_background(self: &Arc<Self>) {
        if !self.is_recently_checked()
            && !self.is_checking_in_background.swap(true, Ordering::SeqCst)
        {
            let root = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                // The result is stored for the next caller.
                let _ = root.check_path();
                root.is_checking_in_background.store(false, Ordering::SeqCst);
            });
        }
    }

    /// Checks the path, and returns the directory that is there now. Blocks.
    pub(super) fn check_path(&self) -> Result<Arc<OpenRoot>, UnusableDirectory> {
        let mut watch = lock(&self.watch);
        let found = self.find(&mut watch);
        let before = match &found {
            Ok(_) => self.failure.swap(None),
            Err(failure) => self.failure.swap(Some(Arc::new(failure.clone()))),
        };
        match (&found, &before) {
            (Err(failure), Some(before)) if before.0 == failure.0 => {}
            (Err(failure), _) => error!("{failure}"),
            (Ok(_), Some(_)) => warn!("the cache's directory is usable again"),
            (Ok(_), None) => {}
        }
        self.checked_at.store(self.millis(), Ordering::SeqCst);
        found
    }

    /// Does the same for a change. Waits until a missing directory may be created again. Blocks.
    pub(super) fn check_path_and_wait(&self) -> Result<Arc<OpenRoot>, UnusableDirectory> {
        let found = self.check_path();
        let since = lock(&self.watch).missing_since;
        match since {
            Some(since) if found.is_err() && self.role == Role::Daemon => {
                std::thread::sleep(RECREATE_AFTER.saturating_sub(since.elapsed()));
                self.check_path()
            }
            _ => found,
        }
    }

    /// Fails if the path no longer leads to `open`.
    pub(super) fn still_leads_to(&self, open: &OpenRoot) -> Result<(), UnusableDirectory> {
        if self.check_path()?.generation == open.generation {
            return Ok(());
        }
        Err(self.unusable("was replaced in the meantime; try again"))
    }

    fn unusable(&self, why: &str) -> UnusableDirectory {
        UnusableDirectory(format!("{} {why}", self.path.display()))
    }

    fn find(&self, watch: &mut PathWatch) -> Result<Arc<OpenRoot>, UnusableDirectory> {
        let open = self.current.load_full();
        let named = match rustix::fs::stat(&self.path) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(self.unusable(&format!("cannot be checked: {error}"))),
        };
        if let Some(named) = named {
            watch.missing_since = None;
            // The path “.” leads to the working directory even after its removal.
            if open.is(&named) && (named.st_nlink > 0 || self.path.is_absolute()) {
                return Ok(open);
            }
        }
        if self.role == Role::Command {
            return Err(self.unusable("was removed or replaced in the meantime"));
        }
        match named {
            Some(named) if FileType::from_raw_mode(named.st_mode) != FileType::Directory => {
                Err(self.unusable("is no longer a directory"))
            }
            Some(named) if named.st_dev != open.device => Err(self.unusable(
                "is on another file system than when the daemon started; mount the right one, \
                 or restart the daemon if this is the right one",
            )),
            Some(_) => self.reopen(&open),
            None => {
                let since = *watch.missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() < RECREATE_AFTER {
                    return Err(self.unusable("is missing"));
                }
                // If the file system is not mounted, its mount point is on another one.
                if device_above(&self.path) != Some(open.device) {
                    return Err(self.unusable(
                        "is missing, and so is the file system that it was on; mount it, or \
                         restart the daemon to start with an empty cache",
                    ));
                }
                create_durably(&self.path).map_err(|error| {
                    self.unusable(&format!("is missing and cannot be created: {error}"))
                })?;
                watch.missing_since = None;
                self.reopen(&open)
            }
        }
    }

    fn reopen(&self, before: &OpenRoot) -> Result<Arc<OpenRoot>, UnusableDirectory> {
        let failed = |error: io::Error| self.unusable(&format!("cannot be opened: {error}"));
        let open = OpenRoot::open(&self.path, before.generation + 1).map_err(failed)?;
        if open.device != before.device {
            return Err(self.unusable("was replaced just now"));
        }
        self.prepare(&open).map_err(|error| UnusableDirectory(with_causes(&error)))?;
        let path = self.path.display();
        warn!(%path, "the cache's directory was replaced; using the new one");
        let open = Arc::new(open);
        self.current.store(Arc::clone(&open));
        Ok(open)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Returns the device of the closest existing directory above `path`.
fn device_above(path: &Path) -> Option<u64> {
    let mut above = parent_of(path);
    loop {
        match rustix::fs::stat(above) {
            Ok(stat) => return Some(stat.st_dev),
            Err(Errno::NOENT) if parent_of(above) != above => above = parent_of(above),
            Err(_) => return None,
        }
    }
}

/// Creates a directory and its parents, and syncs the parent of each new directory.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_durably(parent_of(path))?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => folder::sync(File::open(parent_of(path))?),
    }
}

/// Syncs the parent directories of `path` on this device. Unreadable ones are skipped: they belong
/// to another user, who created their entries.
fn sync_above(path: &Path, device: u64) -> io::Result<()> {
    let mut above = parent_of(path);
    loop {
        match File::open(above) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            opened => {
                let opened = opened?;
                if rustix::fs::fstat(&opened)?.st_dev != device {
                    return Ok(());
                }
                folder::sync(opened)?;
            }
        }
        if parent_of(above) == above || above.parent().is_none() {
            return Ok(());
        }
        above = parent_of(above);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_that_replaces_the_old_one_is_opened_and_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let root = Root::open(&path, Role::Daemon).unwrap();
        root.keep("nix-cache-info".to_owned(), "text".into());
        let first = root.check_path().unwrap();
        root.still_leads_to(&first).unwrap();
        fs::rename(&path, dir.path().join("before")).unwrap();
        assert!(root.check_path().unwrap_err().to_string().contains("is missing"));
        fs::create_dir(&path).unwrap();
        assert!(root.still_leads_to(&first).is_err());
        let second = root.check_path().unwrap();
        assert_eq!(second.generation, 1);
        assert!(path.join("nar").is_dir() && path.join(".nix-stored/staging").is_dir());
        assert_eq!(fs::read(path.join("nix-cache-info")).unwrap(), b"text");
        drop(first);
        assert_eq!(fs::read_dir(dir.path().join("before/.nix-stored/staging")).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_created_again_after_a_delay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/cache");
        let root = Root::open(&path, Role::Daemon).unwrap();
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert!(root.check_path().is_err() && !path.exists());
        assert_eq!(root.check_path_and_wait().unwrap().generation, 1);
        assert!(path.join("nar").is_dir());
    }

    #[test]
    fn a_command_does_not_continue_in_another_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path, Role::Command).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        root.check_path().unwrap();
        fs::rename(&path, dir.path().join("before")).unwrap();
        assert!(root.check_path_and_wait().is_err());
        fs::create_dir(&path).unwrap();
        assert!(root.check_path().is_err());
        fs::remove_dir(&path).unwrap();
        fs::rename(dir.path().join("before"), &path).unwrap();
        root.check_path().unwrap();
    }

    #[test]
    fn a_file_or_a_directory_on_another_disk_is_not_opened() {
        let (dir, other) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let link = dir.path().join("cache");
        fs::create_dir(dir.path().join("here")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("here"), &link).unwrap();
        let root = Root::open(&link, Role::Daemon).unwrap();
        fs::remove_file(&link).unwrap();
        fs::write(&link, "").unwrap();
        assert!(root.check_path().unwrap_err().to_string().contains("no longer a directory"));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(other.path(), &link).unwrap();
        assert!(root.check_path().unwrap_err().to_string().contains("another file system"));
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(dir.path().join("here"), &link).unwrap();
        assert_eq!(root.check_path().unwrap().generation, 0);
    }
}
