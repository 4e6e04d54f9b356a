//! The staging directory, one for each process.
//!
//! A process holds a lock on its staging directory; the kernel releases the lock when the process
//! ends in any way. So a staging directory that can be locked belongs to an ended process and is
//! removed, and a new daemon does not remove the uploads of one that is still draining. The sweep
//! removes only what a daemon creates there: directories `<process>-<number>` with files in them.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode};
use rustix::io::Errno;

use super::folder::{create, each, has_no_locks, open_here, rename_new, unlink};
use crate::store::Stored;

/// The staging directory of this process.
#[derive(Debug, Default)]
pub(super) struct Staging {
    folder: Mutex<Option<Arc<Folder>>>,
    next: AtomicU64,
}

/// A staging directory of a process.
#[derive(Debug)]
struct Folder {
    fd: OwnedFd,
    parent: OwnedFd,
    name: String,
}

/// A file in the staging directory. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct StagedFile {
    folder: Arc<Folder>,
    /// The name in the staging directory; `None` after the file was published.
    name: Option<String>,
}

impl Staging {
    /// Unless it was done before, removes the staging directories of ended processes from the
    /// directory that `parent` opens, and creates that of this process.
    pub(super) fn prepare(&self, parent: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<()> {
        self.folder(parent).map(drop)
    }

    fn folder(&self, parent: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Arc<Folder>> {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &*folder {
            return Ok(Arc::clone(folder));
        }
        let made = Arc::new(Folder::make(parent()?)?);
        *folder = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Creates an empty file.
    pub(super) fn create(
        &self,
        parent: impl Fn() -> io::Result<OwnedFd>,
    ) -> io::Result<(File, StagedFile)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let folder = self.folder(&parent)?;
        match create(&folder.fd, &name) {
            // The directory was removed.
            Err(Errno::NOENT) => self.forget(&folder),
            created => return Ok((created?.into(), StagedFile { folder, name: Some(name) })),
        }
        let folder = self.folder(&parent)?;
        let file = create(&folder.fd, &name)?;
        Ok((file.into(), StagedFile { folder, name: Some(name) }))
    }

    fn forget(&self, removed: &Arc<Folder>) {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        if folder.as_ref().is_some_and(|folder| Arc::ptr_eq(folder, removed)) {
            *folder = None;
        }
    }
}

impl StagedFile {
    /// Renames the file to `base`, and replaces an existing file of that name. The rename itself
    /// finds out whether the name exists, because a separate lookup would be slow for a name that
    /// is not in the dentry cache.
    pub(super) fn publish(&mut self, to: impl AsFd, base: &str) -> Result<Stored, Errno> {
        let name = self.name.as_deref().expect("a file is published once");
        let stored = match rename_new(&self.folder.fd, name, &to, base) {
            Ok(()) => Stored::Created,
            // The name exists, or the file system does not report it: the file is replaced.
            Err(_) => {
                rustix::fs::renameat(&self.folder.fd, name, to, base)?;
                Stored::Replaced
            }
        };
        self.name = None;
        Ok(stored)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // If this fails, the sweep at the next start removes the file.
            let _ = unlink(&self.folder.fd, name);
        }
    }
}

impl Folder {
    fn make(parent: OwnedFd) -> io::Result<Self> {
        // The lock of the parent is held until the new directory is locked. Otherwise a process
        // that starts now could remove the new directory.
        match rustix::fs::flock(&parent, FlockOperation::LockExclusive) {
            Ok(()) => sweep(&parent)?,
            // Without locks it is unknown which directories are in use, so all are kept.
            Err(error) if has_no_locks(error) => {}
            Err(error) => return Err(error.into()),
        }
        let (fd, name) = make_unused(&parent)?;
        match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
            Err(error) if !has_no_locks(error) => return Err(error.into()),
            _ => {}
        }
        rustix::fs::flock(&parent, FlockOperation::Unlock).ok();
        Ok(Self { fd, parent, name })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // If the directory is not empty, the sweep at the next start removes it.
        let _ = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Creates a directory named after the process ID, with a counter, because processes in different
/// containers can have the same ID.
fn make_unused(parent: impl AsFd) -> io::Result<(OwnedFd, String)> {
    let process = std::process::id();
    let names = (0u32..).map(|count| format!("{process}-{count}"));
    for name in names {
        match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
            Ok(()) => return Ok((open_here(&parent, &name)?, name)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("a folder does not hold every number")
}

/// Removes the directories of ended processes. Keeps symbolic links, and
/// entries whose names no daemon creates.
fn sweep(parent: impl AsFd) -> io::Result<()> {
    each(&parent, |name, kind| {
        if kind != FileType::Directory || !is_staging_name(name) {
            return Ok(());
        }
        let folder = match open_here(&parent, name) {
            Ok(folder) => folder,
            // The directory belongs to another user, or was removed meanwhile.
            Err(Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => remove(&parent, name, &folder),
            Err(Errno::WOULDBLOCK) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

/// Whether `name` has the form `<process>-<number>`.
fn is_staging_name(name: &CStr) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.to_str().ok().and_then(|name| name.split_once('-'));
    parts.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// Removes a directory and the files in it. Keeps it if it contains directories, which no daemon
/// creates.
fn remove(parent: impl AsFd, name: &CStr, folder: &OwnedFd) -> io::Result<()> {
    each(folder, |file, kind| {
        if kind != FileType::Directory {
            unlink(folder, file)?;
        }
        Ok(())
    })?;
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn parent(dir: &Path) -> impl Fn() -> io::Result<OwnedFd> + '_ {
        move || Ok(File::open(dir)?.into())
    }

    fn open(dir: &Path) -> Staging {
        let staging = Staging::default();
        staging.prepare(parent(dir)).unwrap();
        staging
    }

    fn count(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn only_the_directories_of_ended_processes_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir(dir.join("4711-0")).unwrap();
        fs::write(dir.join("4711-0/3"), "torn").unwrap();
        let living = open(dir);
        let (_, staged) = living.create(parent(dir)).unwrap();
        let second = open(dir);
        assert_eq!(count(dir), 2);
        drop(staged);
        // A dropped staging directory is removed.
        drop(second);
        assert_eq!(count(dir), 1);
        let (_, staged) = living.create(parent(dir)).unwrap();
        drop((living, staged));
        assert_eq!(count(dir), 0);
    }

    #[test]
    fn a_staging_directory_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::default();
        assert_eq!(count(dir.path()), 0);
        let staged = [(); 2].map(|()| staging.create(parent(dir.path())).unwrap().1);
        assert_ne!(staged[0].name, staged[1].name);
        assert_eq!(count(dir.path()), 1);
    }

    #[test]
    fn a_removed_staging_directory_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let staging = open(dir.path());
        let lost = staging.create(parent(dir.path())).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        let (_, mut staged) = staging.create(parent(dir.path())).unwrap();
        let to = File::open(dir.path()).unwrap();
        assert_eq!(staged.publish(&to, "object").unwrap(), Stored::Created);
        drop((lost, staged, staging));
        assert_eq!(count(dir.path()), 1);
    }

    #[test]
    fn the_sweep_keeps_links_and_names_that_no_daemon_creates() {
        let (dir, precious) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(precious.path().join("file"), "data").unwrap();
        fs::create_dir_all(dir.path().join("4711-0/folder")).unwrap();
        fs::write(dir.path().join("4711-0/folder/file"), "data").unwrap();
        fs::create_dir(dir.path().join("4712-0")).unwrap();
        symlink(precious.path(), dir.path().join("4712-0/3")).unwrap();
        symlink(precious.path(), dir.path().join("4713-0")).unwrap();
        fs::create_dir(dir.path().join("backup-2024")).unwrap();
        fs::create_dir(dir.path().join("4714")).unwrap();
        fs::write(dir.path().join("4715-0"), "a file").unwrap();
        drop(open(dir.path()));
        assert_eq!(fs::read(precious.path().join("file")).unwrap(), b"data");
        assert_eq!(fs::read(dir.path().join("4711-0/folder/file")).unwrap(), b"data");
        assert!(!dir.path().join("4712-0").exists());
        for name in ["4713-0", "backup-2024", "4714", "4715-0"] {
            assert!(dir.path().join(name).symlink_metadata().is_ok(), "{name}");
        }
    }
}
