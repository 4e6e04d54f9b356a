//! The folder in which objects are staged, one for each process.
//!
//! A process holds a lock on its folder for as long as it lives; the kernel drops it with the
//! process, however that ends. So a folder that can be locked belongs to nobody and is swept away,
//! and a daemon that starts while another still drains leaves that one's uploads alone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

/// This process's staging folder.
#[derive(Debug)]
pub(super) struct Staging {
    parent: PathBuf,
    folder: OnceLock<Folder>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Staging {
    /// Sweeps `parent` and makes this process's folder in it.
    pub(super) fn open(parent: &Path) -> io::Result<Self> {
        let staging = Self::later(parent);
        staging.folder()?;
        Ok(staging)
    }

    /// Does the same when something is staged for the first time.
    pub(super) fn later(parent: &Path) -> Self {
        Self { parent: parent.to_owned(), folder: OnceLock::new(), next: AtomicU64::new(0) }
    }

    /// The folder.
    pub(super) fn folder(&self) -> io::Result<impl AsFd + '_> {
        if let Some(folder) = self.folder.get() {
            return Ok(&folder.fd);
        }
        let folder = Folder::make(&self.parent)?;
        // Where two threads came at the same time, one of two folders goes again.
        Ok(&self.folder.get_or_init(|| folder).fd)
    }

    /// A new, empty file and its name in the folder.
    pub(super) fn create(&self) -> io::Result<(OwnedFd, String)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.folder()?, &name, flags, Mode::from_raw_mode(0o644))?;
        Ok((file, name))
    }

    /// Removes the file `name`.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.folder()?, name, AtFlags::empty())?)
    }
}

impl Folder {
    fn make(parent: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(parent)?;
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent_fd = rustix::fs::open(parent, directory, Mode::empty())?;
        // Held until the new folder is locked too, or another process that starts right now would
        // take it for one that was left behind.
        rustix::fs::flock(&parent_fd, FlockOperation::LockExclusive)?;
        sweep(parent)?;
        let name = unused_name(parent);
        rustix::fs::mkdirat(&parent_fd, &name, Mode::RWXU)?;
        let fd = rustix::fs::openat(&parent_fd, &name, directory, Mode::empty())?;
        rustix::fs::flock(&fd, FlockOperation::LockExclusive)?;
        Ok(Self { fd, path: parent.join(name) })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Where something is left in it, the sweep at the next start removes it.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Removes the folders in `parent` that no living process holds.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        let opened = rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let folder = match opened {
            Ok(folder) => folder,
            // Another user's, who has to sweep it.
            Err(rustix::io::Errno::ACCESS) => continue,
            // It has just been swept by its owner.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(_) => {
                std::fs::remove_file(&path)?;
                continue;
            }
        };
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => std::fs::remove_dir_all(&path)?,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The process's number, or that with a counter where a container's daemon has the number of one
/// in another.
fn unused_name(parent: &Path) -> String {
    let process = std::process::id();
    (0u32..)
        .map(|count| format!("{process}-{count}"))
        .find(|name| !parent.join(name).exists())
        .expect("a folder does not hold every number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dead_left_is_swept_and_the_living_are_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::create_dir(parent.path().join("4711-0")).unwrap();
        std::fs::write(parent.path().join("4711-0/3"), "torn").unwrap();
        let living = Staging::open(parent.path()).unwrap();
        let (_, name) = living.create().unwrap();
        let second = Staging::open(parent.path()).unwrap();
        living.remove(&name).unwrap();
        // It takes its own folder with it.
        drop(second);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
        living.create().unwrap();
        drop(living);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
        let third = Staging::open(parent.path()).unwrap();
        drop(third);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_made_later_is_made_once() {
        let parent = tempfile::tempdir().unwrap();
        let staging = Staging::later(&parent.path().join("staging"));
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        let names = [staging.create().unwrap().1, staging.create().unwrap().1];
        assert_ne!(names[0], names[1]);
        let folders = std::fs::read_dir(parent.path().join("staging")).unwrap().count();
        assert_eq!(folders, 1);
    }
}
