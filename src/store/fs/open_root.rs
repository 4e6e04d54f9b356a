//! An open directory: creates, syncs and renames files in it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::folder::{self, is_own, split};
use super::negative_cache::NegativeCache;
use super::staging::{StagedFile, Staging};
use super::unsynced::Unsynced;
use super::whole_sync;
use crate::store::lines::has_lines;

/// The directory in which uploads are staged.
pub(super) const STAGING: &str = ".nix-stored/staging";

/// The number of bytes that are read of a stored text, in addition to the length of the wanted one,
/// to compare them.
const KEPT_TEXT_LIMIT: u64 = 64 * 1024;

/// An open directory of a store.
#[derive(Debug)]
pub(super) struct OpenRoot {
    fd: OwnedFd,
    /// The device of the directory.
    pub device: u64,
    inode: u64,
    /// The number of the directory, counted from the one that was opened at start.
    pub generation: u64,
    /// Whether the file system reports link counts of directories. Some in user space report 0.
    pub counts_links: bool,
    pub negative_cache: NegativeCache,
    /// The directories whose last sync failed.
    pub unsynced: Unsynced,
    /// Whether `syncfs` can replace a sync of each file.
    pub syncs_as_a_whole: bool,
    staging: Staging,
    has_warned: AtomicBool,
}

impl OpenRoot {
    pub(super) fn open(path: &Path, generation: u64) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            generation,
            counts_links: stat.st_nlink > 0,
            negative_cache: NegativeCache::new(),
            unsynced: Unsynced::default(),
            syncs_as_a_whole: whole_sync::is_reliable(&fd),
            staging: Staging::default(),
            has_warned: AtomicBool::new(false),
            fd,
        })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Returns true for the first call, so that a warning about the whole directory is logged once.
    pub(super) fn is_first_warning(&self) -> bool {
        !self.has_warned.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is(&self, stat: &Stat) -> bool {
        (self.device, self.inode) == (stat.st_dev, stat.st_ino)
    }

    /// Opens the directory `key`.
    pub(super) fn folder(&self, key: &str) -> io::Result<OwnedFd> {
        folder::open(&self.fd, key)
    }

    /// Opens the directory `key`. Creates it if it is missing, and syncs its parent, so that a
    /// power failure does not remove it with its files.
    pub(super) fn make_folder(&self, key: &str) -> io::Result<OwnedFd> {
        match self.folder(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && key != "." => {}
            opened => {
                self.settle_above(key)?;
                return opened;
            }
        }
        let (above, base) = split(key);
        let parent = self.make_folder(above)?;
        match rustix::fs::mkdirat(&parent, base, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.sync(above, &parent)?,
            Err(error) => return Err(error.into()),
        }
        self.folder(key)
    }

    /// Syncs the parents of `key` whose last sync failed.
    fn settle_above(&self, mut key: &str) -> io::Result<()> {
        while key != "." {
            key = split(key).0;
            if self.unsynced.has(key) {
                self.sync_again(key)?;
            }
        }
        Ok(())
    }

    /// Syncs the directory `key`, which is open as `fd`, and remembers a failure.
    pub(super) fn sync(&self, key: &str, fd: impl AsFd) -> io::Result<()> {
        let started = self.unsynced.begin();
        let synced = folder::sync(fd);
        self.unsynced.end(key, started, synced.is_ok());
        synced
    }

    fn sync_again(&self, key: &str) -> io::Result<()> {
        match self.folder(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.unsynced.forget(key);
                Ok(())
            }
            opened => self.sync(key, opened?),
        }
    }

    /// Syncs the directories of objects whose last sync failed. Returns those for which it fails
    /// again.
    pub(super) fn sync_what_failed(&self) -> Vec<(String, io::Error)> {
        let folders = self.unsynced.folders().into_iter().filter(|folder| !is_own(folder));
        let synced = folders.map(|folder| (self.sync_again(&folder), folder));
        synced.filter_map(|(synced, folder)| Some((folder, synced.err()?))).collect()
    }

    /// Syncs the directories because of which the upload of `key` failed, so that the object may be
    /// served.
    pub(super) fn settle(&self, key: &str) -> Result<(), Errno> {
        while let Some((folder, is_due)) = self.unsynced.in_doubt(key) {
            if !is_due {
                return Err(Errno::IO);
            }
            self.sync_again(&folder).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        Ok(())
    }

    /// Creates a file in the staging directory of this process.
    pub(super) fn stage(&self) -> io::Result<(File, StagedFile)> {
        self.staging.create(|| self.staging_folder())
    }

    /// Creates the staging directory of this process, and removes those of ended processes.
    pub(super) fn prepare_staging(&self) -> io::Result<()> {
        self.staging.prepare(|| self.staging_folder())
    }

    fn staging_folder(&self) -> io::Result<OwnedFd> {
        self.make_folder(STAGING)
    }

    /// Stores a text durably, unless the stored text has all of its lines.
    pub(super) fn keep(&self, key: &str, text: &[u8]) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(there) = rustix::fs::openat(&self.fd, key, flags, Mode::empty()) {
            let mut lines = Vec::new();
            let limit = KEPT_TEXT_LIMIT + text.len() as u64;
            if File::from(there).take(limit).read_to_end(&mut lines).is_ok()
                && has_lines(&lines, text)
            {
                return Ok(());
            }
        }
        let (mut file, mut staged) = self.stage()?;
        file.write_all(text)?;
        file.sync_all()?;
        let (folder, base) = split(key);
        let fd = self.make_folder(folder)?;
        staged.publish(&fd, base)?;
        self.sync(folder, &fd)
    }
}

impl AsFd for OpenRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
