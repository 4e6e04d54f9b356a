//! The daemon's own files in `.nix-stored/`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::blocking;
use super::folder::{OWN_FOLDER, create, each, has_no_locks, split, stat, unlink};
use super::open_root::OpenRoot;
use super::remove::Trash;
use super::root::Root;
use crate::store::{CollectionLock, StoreError};

/// The private files of a directory.
#[derive(Debug)]
pub struct FsPrivateFiles {
    root: Arc<Root>,
    trash: Arc<Trash>,
}

impl FsPrivateFiles {
    pub(super) fn new(root: Arc<Root>, trash: Arc<Trash>) -> Self {
        Self { root, trash }
    }

    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let folder = folder.to_owned();
        let list = {
            let folder = folder.clone();
            move |root: &_| names(root, &folder)
        };
        blocking::run_in(&self.root, "listing", folder, list).await
    }

    pub(crate) async fn read(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let name = name.to_owned();
        let read = {
            let name = name.clone();
            move |root: &_| read(root, &name)
        };
        blocking::run_in(&self.root, "reading", name, read).await
    }

    pub(crate) async fn write(&self, name: &str, text: Bytes) -> Result<bool, StoreError> {
        let name = name.to_owned();
        let write = {
            let name = name.clone();
            move |root: &_| write(root, &name, &text)
        };
        blocking::change_in(&self.root, "writing", name, write).await
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        let remove = {
            let name = name.clone();
            move |root: &_| remove(root, &name)
        };
        blocking::change_in(&self.root, "writing", name, remove).await
    }

    pub(crate) async fn lock_collection(&self) -> Result<Option<CollectionLock>, StoreError> {
        let trash = Arc::clone(&self.trash);
        let lock = move |root: &OpenRoot| match lock(root)? {
            Some(lock) => trash.begin(root).map(|()| Some(lock)),
            None => Ok(None),
        };
        blocking::run_in(&self.root, "locking", "lock".to_owned(), lock).await
    }
}

fn key_of(name: &str) -> String {
    format!("{OWN_FOLDER}/{name}")
}

/// Returns the sorted names of the files in a folder; none if the folder is missing.
fn names(root: &OpenRoot, folder: &str) -> io::Result<Vec<String>> {
    let folder = match root.folder(&key_of(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder?,
    };
    let mut names = Vec::new();
    each(folder, |name, kind| {
        // The name of a temporary file begins with a dot.
        let name = name.to_str().ok().filter(|name| !name.starts_with('.'));
        if kind == FileType::RegularFile {
            names.extend(name.map(str::to_owned));
        }
        Ok(())
    })?;
    names.sort_unstable();
    Ok(names)
}

fn read(root: &OpenRoot, name: &str) -> io::Result<Option<Bytes>> {
    let key = key_of(name);
    let (folder, base) = split(&key);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = root
        .folder(folder)
        .and_then(|folder| Ok(rustix::fs::openat(folder, base, flags, Mode::empty())?));
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => {
            let mut text = Vec::new();
            File::from(file?).read_to_end(&mut text)?;
            Ok(Some(text.into()))
        }
    }
}

/// Writes a file durably. Returns whether it replaced an older one.
fn write(root: &OpenRoot, name: &str, text: &[u8]) -> io::Result<bool> {
    let key = key_of(name);
    let (folder, base) = split(&key);
    let fd = root.make_folder(folder)?;
    let existed = stat(&fd, base)?.is_some();
    let staged = format!(".{base}.{}", std::process::id());
    let written = write_synced(&fd, &staged, text)
        .and_then(|()| Ok(rustix::fs::renameat(&fd, &staged, &fd, base)?));
    if written.is_err() {
        // If this fails, too, a temporary file remains, which the next write replaces.
        let _ = unlink(&fd, &staged);
    }
    written?;
    root.sync(folder, &fd)?;
    Ok(existed)
}

/// Removes a file durably. Returns false if it was absent.
fn remove(root: &OpenRoot, name: &str) -> io::Result<bool> {
    let key = key_of(name);
    let (folder, base) = split(&key);
    let fd = match root.folder(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let existed = stat(&fd, base)?.is_some();
    if existed {
        unlink(&fd, base)?;
    }
    // The directory is synced even if the file was absent, because the process that removed it may
    // have failed to sync the removal.
    root.sync(folder, &fd)?;
    Ok(existed)
}

fn write_synced(folder: &OwnedFd, name: &str, text: &[u8]) -> io::Result<()> {
    let created = match create(folder, name) {
        // A killed process with the same ID left the file.
        Err(Errno::EXIST) => {
            unlink(folder, name)?;
            create(folder, name)
        }
        created => created,
    };
    let mut file = File::from(created?);
    file.write_all(text)?;
    file.sync_all()
}

/// A locked file, unlocked on drop.
struct Locked(OwnedFd);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing the file would not be enough while a forked child, which has not executed its
        // program yet, has the same descriptor.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks the file `lock`, or returns `None` if another process holds the lock. The kernel releases it
/// with the process, however the process ends.
fn lock(root: &OpenRoot) -> io::Result<Option<CollectionLock>> {
    // The folder is missing in a cache that only Nix has written to.
    let folder = root.make_folder(OWN_FOLDER)?;
    // Opened for reading, so that a file of another user can be locked, too.
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, "lock", flags, Mode::from_raw_mode(0o644))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(CollectionLock::new(Locked(file)))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) if has_no_locks(error) => Err(io::Error::new(
            io::Error::from(error).kind(),
            format!(
                "the file system of the cache does not support locks ({error}), and two \
                 processes that remove objects at the same time would damage the cache"
            ),
        )),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::store::fs::root::Role;

    fn open(dir: &Path) -> Arc<OpenRoot> {
        Root::open(dir, Role::Command).unwrap().check_path().unwrap()
    }

    #[test]
    fn a_file_exists_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let folder = dir.path().join(".nix-stored/pins");
        assert_eq!(names(&root, "pins").unwrap(), [""; 0]);
        assert_eq!(read(&root, "pins/a").unwrap(), None);
        assert!(!remove(&root, "pins/a").unwrap());
        assert!(!write(&root, "pins/a", b"one").unwrap());
        assert!(write(&root, "pins/a", b"two").unwrap());
        assert!(!write(&root, "pins/B", b"").unwrap());
        assert_eq!(read(&root, "pins/a").unwrap().unwrap(), "two");
        // Temporary files of killed processes are not listed.
        fs::write(folder.join(".a.1"), "th").unwrap();
        fs::write(folder.join(format!(".a.{}", std::process::id())), "th").unwrap();
        fs::create_dir(folder.join("folder")).unwrap();
        assert!(write(&root, "pins/a", b"three").unwrap());
        assert_eq!(names(&root, "pins").unwrap(), ["B", "a"]);
        assert!(remove(&root, "pins/a").unwrap());
        assert!(!remove(&root, "pins/a").unwrap());
        assert_eq!(names(&root, "pins").unwrap(), ["B"]);
    }

    #[test]
    fn files_and_the_lock_do_not_follow_links() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = open(dir.path());
        let file = elsewhere.path().join("file");
        fs::write(&file, "data").unwrap();
        write(&root, "pins/a", b"one").unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join(".nix-stored/pins/b")).unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join(".nix-stored/lock")).unwrap();
        assert_eq!(names(&root, "pins").unwrap(), ["a"]);
        assert!(read(&root, "pins/b").is_err() && lock(&root).is_err());
        write(&root, "pins/b", b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"data");
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(".nix-stored/other")).unwrap();
        assert!(write(&root, "other/file", b"two").is_err());
        assert!(remove(&root, "other/file").is_err());
        assert_eq!(fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn the_lock_has_one_holder_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let first = lock(&root).unwrap();
        assert!(first.is_some());
        assert!(lock(&root).unwrap().is_none());
        drop(first);
        assert!(lock(&root).unwrap().is_some());
    }
}
