//! What the cache keeps for itself: small files in its own folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::make_durably;
use crate::store::Lock;

/// The names of the files in a folder; none if there is no folder.
pub(super) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A note that is being written begins with a dot.
        let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'));
        if entry.file_type()?.is_file() {
            names.extend(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn read(path: &Path) -> io::Result<Option<Bytes>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => Ok(Some(text?.into())),
    }
}

/// Writes a note durably, or removes it. False if there was none.
pub(super) fn set(path: &Path, text: Option<&[u8]>) -> io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let existed = path.exists();
    match text {
        Some(text) => {
            make_durably(folder)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let staged = folder.join(format!(".{name}.{}", std::process::id()));
            let written = write_synced(&staged, text).and_then(|()| fs::rename(&staged, path));
            if written.is_err() {
                // Nothing more can be done about it.
                let _ = fs::remove_file(&staged);
            }
            written?;
        }
        None if existed => fs::remove_file(path)?,
        None => return Ok(false),
    }
    File::open(folder)?.sync_all()?;
    Ok(existed)
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// A file that is locked.
struct Locked(OwnedFd);

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing would do, but for a child process that was forked and has not become another
        // program yet: it has the descriptor, too.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks the file. The kernel drops the lock with the process, however
/// that ends.
pub(super) fn lock(path: &Path) -> io::Result<Option<Lock>> {
    // A cache that only Nix wrote to so far has no folder of ours.
    make_durably(path.parent().unwrap_or(Path::new(".")))?;
    // For reading is enough to lock it, also where another user has made it.
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock::new(Locked(file)))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_there_until_it_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pins");
        let note = folder.join("a");
        assert_eq!(names(&folder).unwrap(), [""; 0]);
        assert_eq!(read(&note).unwrap(), None);
        assert!(!set(&note, None).unwrap());
        assert!(!set(&note, Some(b"one")).unwrap());
        assert!(set(&note, Some(b"two")).unwrap());
        assert!(!set(&folder.join("B"), Some(b"")).unwrap());
        assert_eq!(read(&note).unwrap().unwrap(), "two");
        // One that a killed process was writing, and what is no note.
        fs::write(folder.join(".a.1"), "th").unwrap();
        fs::create_dir(folder.join("folder")).unwrap();
        assert_eq!(names(&folder).unwrap(), ["B", "a"]);
        assert!(set(&note, None).unwrap());
        assert!(!set(&note, None).unwrap());
        assert_eq!(names(&folder).unwrap(), ["B"]);
    }

    #[test]
    fn a_lock_is_one_persons_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path).unwrap();
        assert!(first.is_some());
        assert!(lock(&path).unwrap().is_none());
        drop(first);
        assert!(lock(&path).unwrap().is_some());
    }
}
