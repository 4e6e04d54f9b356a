//! The daemon's own small files in `.nix-stored/`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::folder::{OWN_FOLDER, create, each, knows_no_locks, split, stat, unlink};
use super::open_root::OpenRoot;
use crate::store::Lock;

fn key_of(name: &str) -> String {
    format!("{OWN_FOLDER}/{name}")
}

/// The names of the files in a folder; none if there is no folder.
pub(super) fn names(root: &OpenRoot, folder: &str) -> io::Result<Vec<String>> {
    let folder = match root.folder(&key_of(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folder => folder?,
    };
    let mut names = Vec::new();
    each(folder, |name, kind| {
        // A note that is being written begins with a dot.
        let name = name.to_str().ok().filter(|name| !name.starts_with('.'));
        if kind == FileType::RegularFile {
            names.extend(name.map(str::to_owned));
        }
        Ok(())
    })?;
    names.sort_unstable();
    Ok(names)
}

pub(super) fn read(root: &OpenRoot, name: &str) -> io::Result<Option<Bytes>> {
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

/// Writes a note durably, or removes it. False if there was none.
pub(super) fn set(root: &OpenRoot, name: &str, text: Option<&[u8]>) -> io::Result<bool> {
    let key = key_of(name);
    let (folder, base) = split(&key);
    let fd = match text {
        Some(_) => root.make_folder(folder)?,
        None => match root.folder(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        },
    };
    let existed = stat(&fd, base)?.is_some();
    match text {
        Some(text) => {
            let staged = format!(".{base}.{}", std::process::id());
            let written = write_synced(&fd, &staged, text)
                .and_then(|()| Ok(rustix::fs::renameat(&fd, &staged, &fd, base)?));
            if written.is_err() {
                // Nothing more can be done about it.
                let _ = unlink(&fd, &staged);
            }
            written?;
        }
        None if existed => unlink(&fd, base)?,
        // The process that removed it may have failed to sync the removal.
        None => {}
    }
    root.sync(folder, &fd)?;
    Ok(existed)
}

fn write_synced(folder: &OwnedFd, name: &str, text: &[u8]) -> io::Result<()> {
    let created = match create(folder, name) {
        // Left by a process that had the same number.
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

/// A locked file.
struct Locked(OwnedFd);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing would do, but for a child process that was forked and has not become another
        // program yet: it has the descriptor, too.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks the file. The kernel drops the lock with the process, however that ends.
pub(super) fn lock(root: &OpenRoot) -> io::Result<Option<Lock>> {
    // A cache that only Nix wrote to so far has no folder of ours.
    let folder = root.make_folder(OWN_FOLDER)?;
    // For reading is enough to lock it, also where another user has made it.
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, "lock", flags, Mode::from_raw_mode(0o644))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock::new(Locked(file)))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) if knows_no_locks(error) => Err(io::Error::new(
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
    use std::sync::Arc;

    use super::*;
    use crate::store::fs::root::{Role, Root};

    fn open(dir: &Path) -> Arc<OpenRoot> {
        Root::open(dir, Role::Command).unwrap().look().unwrap()
    }

    #[test]
    fn a_note_is_there_until_it_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let folder = dir.path().join(".nix-stored/pins");
        assert_eq!(names(&root, "pins").unwrap(), [""; 0]);
        assert_eq!(read(&root, "pins/a").unwrap(), None);
        assert!(!set(&root, "pins/a", None).unwrap());
        assert!(!set(&root, "pins/a", Some(b"one")).unwrap());
        assert!(set(&root, "pins/a", Some(b"two")).unwrap());
        assert!(!set(&root, "pins/B", Some(b"")).unwrap());
        assert_eq!(read(&root, "pins/a").unwrap().unwrap(), "two");
        // A temporary file of a killed process, or a file that is not a note.
        fs::write(folder.join(".a.1"), "th").unwrap();
        fs::write(folder.join(format!(".a.{}", std::process::id())), "th").unwrap();
        fs::create_dir(folder.join("folder")).unwrap();
        assert!(set(&root, "pins/a", Some(b"three")).unwrap());
        assert_eq!(names(&root, "pins").unwrap(), ["B", "a"]);
        assert!(set(&root, "pins/a", None).unwrap());
        assert!(!set(&root, "pins/a", None).unwrap());
        assert_eq!(names(&root, "pins").unwrap(), ["B"]);
    }

    #[test]
    fn no_note_and_no_lock_goes_through_a_link() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = open(dir.path());
        let file = elsewhere.path().join("file");
        fs::write(&file, "data").unwrap();
        set(&root, "pins/a", Some(b"one")).unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join(".nix-stored/pins/b")).unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join(".nix-stored/lock")).unwrap();
        assert_eq!(names(&root, "pins").unwrap(), ["a"]);
        assert!(read(&root, "pins/b").is_err() && lock(&root).is_err());
        set(&root, "pins/b", Some(b"two")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"data");
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(".nix-stored/other")).unwrap();
        assert!(set(&root, "other/file", Some(b"two")).is_err());
        assert!(set(&root, "other/file", None).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn a_lock_is_one_persons_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let first = lock(&root).unwrap();
        assert!(first.is_some());
        assert!(lock(&root).unwrap().is_none());
        drop(first);
        assert!(lock(&root).unwrap().is_some());
    }
}
