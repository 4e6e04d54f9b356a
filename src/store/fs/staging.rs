//! The folder in which objects are staged, one for each process.
//!
//! A process holds a lock on its folder for as long as it lives; the kernel drops it with the
//! process, however that ends. So a folder that can be locked belongs to nobody and is swept away,
//! and a daemon that starts while another still drains leaves that one's uploads alone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

/// This process's staging folder.
#[derive(Debug)]
pub(super) struct Staging {
    folder: OwnedFd,
    next: AtomicU64,
}

impl Staging {
    /// Sweeps `parent` and makes this process's folder in it.
    pub(super) fn open(parent: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(parent)?;
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent_fd = rustix::fs::open(parent, directory, Mode::empty())?;
        // Held until the new folder is locked too, or another process that starts right now would
        // take it for one that was left behind.
        rustix::fs::flock(&parent_fd, FlockOperation::LockExclusive)?;
        sweep(parent)?;
        let name = unused_name(parent);
        rustix::fs::mkdirat(&parent_fd, &name, Mode::RWXU)?;
        let folder = rustix::fs::openat(&parent_fd, &name, directory, Mode::empty())?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)?;
        Ok(Self { folder, next: AtomicU64::new(0) })
    }

    /// A new, empty file and its name in the folder.
    pub(super) fn create(&self) -> io::Result<(OwnedFd, String)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.folder, &name, flags, Mode::from_raw_mode(0o644))?;
        Ok((file, name))
    }

    /// Removes the file `name`.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())?)
    }

    /// The folder.
    pub(super) fn folder(&self) -> impl AsFd + '_ {
        &self.folder
    }
}

/// Removes the folders in `parent` that no living process holds.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        let Ok(folder) =
            rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        else {
            std::fs::remove_file(&path)?;
            continue;
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
        drop(second);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 2);
        drop(living);
        let _third = Staging::open(parent.path()).unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
