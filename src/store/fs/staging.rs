//! The staging directory, one for each process.
//!
//! A process holds a lock on its staging directory as long as it lives; the kernel drops the lock
//! with the process, however it ends. So a staging directory that can be locked has no owner and is
//! removed, and a daemon that starts while another one still drains does not touch the other's
//! uploads. The sweep removes only what a daemon creates there: directories `<process>-<number>`
//! with files in them.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode};
use rustix::io::Errno;

use super::folder::{create, each, knows_no_locks, open_here, rename_new, unlink};
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
    /// None when it has another name.
    name: Option<String>,
}

impl Staging {
    /// Sweeps the folder that `parent` opens, and makes this process's in it; unless that is done.
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

    /// A new, empty file.
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
    /// Gives the file its name, in place of another. Whether there was one with that name, the
    /// rename itself finds out: to look before would walk to a name that is not in the dentry
    /// cache, on another thread.
    pub(super) fn publish(&mut self, to: impl AsFd, base: &str) -> Result<Stored, Errno> {
        let name = self.name.as_deref().expect("a file is published once");
        let stored = match rename_new(&self.folder.fd, name, &to, base) {
            Ok(()) => Stored::Created,
            // There is one, or the file system cannot say: then this comes in its place.
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
            // The sweep at the next start removes what cannot be removed now.
            let _ = unlink(&self.folder.fd, name);
        }
    }
}

impl Folder {
    fn make(parent: OwnedFd) -> io::Result<Self> {
        // Held until the new folder is locked too, or another process that starts right now would
        // take it for one that was left behind.
        match rustix::fs::flock(&parent, FlockOperation::LockExclusive) {
            Ok(()) => sweep(&parent)?,
            // Then it is unknown which directories are in use, and all are kept.
            Err(error) if knows_no_locks(error) => {}
            Err(error) => return Err(error.into()),
        }
        let (fd, name) = make_unused(&parent)?;
        match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
            Err(error) if !knows_no_locks(error) => return Err(error.into()),
            _ => {}
        }
        rustix::fs::flock(&parent, FlockOperation::Unlock).ok();
        Ok(Self { fd, parent, name })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Where something is left in it, the sweep at the next start removes it.
        let _ = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// Makes a folder named after the process, with a counter where a container's daemon has the number
/// of one in another.
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

/// Removes the directories of ended processes. Other names and links are not ours, and are kept.
fn sweep(parent: impl AsFd) -> io::Result<()> {
    each(&parent, |name, kind| {
        if kind != FileType::Directory || !is_a_process(name) {
            return Ok(());
        }
        let folder = match open_here(&parent, name) {
            Ok(folder) => folder,
            // It belongs to another user, who has to remove it; or its owner has just removed it.
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

/// Whether this is `<process>-<number>`.
fn is_a_process(name: &CStr) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.to_str().ok().and_then(|name| name.split_once('-'));
    parts.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// Removes a folder and the files in it. Where there are folders in it, which no daemon makes, they
/// and it stay.
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
    fn what_the_dead_left_is_swept_and_the_living_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir(dir.join("4711-0")).unwrap();
        fs::write(dir.join("4711-0/3"), "torn").unwrap();
        let living = open(dir);
        let (_, staged) = living.create(parent(dir)).unwrap();
        let second = open(dir);
        assert_eq!(count(dir), 2);
        drop(staged);
        // It takes its own folder with it.
        drop(second);
        assert_eq!(count(dir), 1);
        let (_, staged) = living.create(parent(dir)).unwrap();
        drop((living, staged));
        assert_eq!(count(dir), 0);
    }

    #[test]
    fn a_folder_that_is_made_later_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::default();
        assert_eq!(count(dir.path()), 0);
        let staged = [(); 2].map(|()| staging.create(parent(dir.path())).unwrap().1);
        assert_ne!(staged[0].name, staged[1].name);
        assert_eq!(count(dir.path()), 1);
    }

    #[test]
    fn a_folder_that_was_removed_is_made_again() {
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
    fn the_sweep_removes_no_link_and_nothing_that_is_not_named_like_a_process() {
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
