//! Removing what nobody has used for long, while others may be about to use it.
//!
//! Between looking at an object's last use and unlinking it, another thread or process could record
//! a use and rely on the object. So it is moved aside first: from then on nobody can record a use
//! of it by its name, and its time, looked at once more, says for good whether somebody did before.
//! If so it is put back.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::read::last_use;
use super::{make_durably, rename_new, sync_directory};
use crate::store::Removed;

/// Where objects go on their way out.
#[derive(Debug)]
pub(super) struct Trash {
    root: Arc<OwnedFd>,
    folder: PathBuf,
    /// Directories that lost something since they were synced.
    unsynced: Mutex<Vec<String>>,
}

impl Trash {
    pub(super) fn new(root: Arc<OwnedFd>, folder: PathBuf) -> Self {
        Self { root, folder, unsynced: Mutex::default() }
    }

    /// Puts back what a crash has left. To be called by who has the right to collect garbage.
    pub(super) fn put_everything_back(&self) -> io::Result<()> {
        match self.put_back(Path::new("")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Moves everything below `sub` back to where it was.
    fn put_back(&self, sub: &Path) -> io::Result<()> {
        for entry in fs::read_dir(self.folder.join(sub))? {
            let entry = entry?;
            let name = sub.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.put_back(&name)?;
            } else {
                self.restore(&entry.path(), &name)?;
            }
        }
        Ok(())
    }

    fn restore(&self, trashed: &Path, key: &Path) -> io::Result<()> {
        match rename_new(CWD, trashed, &self.root, key) {
            Ok(()) => Ok(()),
            // It was uploaded again in the meantime.
            Err(Errno::EXIST) => fs::remove_file(trashed),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn remove(&self, key: &str, unused_since: SystemTime) -> io::Result<Removed> {
        let in_use = |stat: &Stat| last_use(stat) > unused_since;
        match stat(self.root.as_fd(), Path::new(key))? {
            None => return Ok(Removed::Absent),
            Some(stat) if in_use(&stat) => return Ok(Removed::InUse),
            Some(_) => {}
        }
        let trashed = self.folder.join(key);
        let moved = || rustix::fs::renameat(&self.root, key, CWD, &trashed);
        match moved() {
            Err(Errno::NOENT) => {
                // Its folder in the trash is missing, or somebody else was faster.
                if let Some(folder) = trashed.parent() {
                    make_durably(folder)?;
                }
                match moved() {
                    Err(Errno::NOENT) => return Ok(Removed::Absent),
                    moved => moved?,
                }
            }
            moved => moved?,
        }
        if stat(CWD, &trashed)?.as_ref().is_some_and(in_use) {
            self.restore(&trashed, Path::new(key))?;
            return Ok(Removed::InUse);
        }
        fs::remove_file(&trashed)?;
        let folder = key.rsplit_once('/').map_or(".", |(folder, _)| folder);
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        if !unsynced.iter().any(|known| known == folder) {
            unsynced.push(folder.to_owned());
        }
        Ok(Removed::Gone)
    }

    /// Makes the removals so far outlive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        let unsynced =
            std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        for folder in unsynced {
            // The trash as well, or what has gone could be found there and put back.
            fs::File::open(self.folder.join(&folder))?.sync_all()?;
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            sync_directory(rustix::fs::openat(&self.root, &folder, flags, Mode::empty())?)?;
        }
        Ok(())
    }
}

fn stat(folder: BorrowedFd<'_>, name: &Path) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    fn trash(dir: &Path) -> Trash {
        let root = Arc::new(OwnedFd::from(File::open(dir).unwrap()));
        Trash::new(root, dir.join(".nix-stored/trash"))
    }

    fn object(dir: &Path, name: &str, used: SystemTime) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
        let times = fs::FileTimes::new().set_accessed(used).set_modified(used);
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        path
    }

    #[test]
    fn only_what_was_not_used_goes() {
        let dir = tempfile::tempdir().unwrap();
        let trash = trash(dir.path());
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let old = object(dir.path(), "nar/old", now - 2 * day);
        let new = object(dir.path(), "nar/new", now);
        assert_eq!(trash.remove("nar/old", now - day).unwrap(), Removed::Gone);
        assert_eq!(trash.remove("nar/old", now - day).unwrap(), Removed::Absent);
        assert_eq!(trash.remove("nar/new", now - day).unwrap(), Removed::InUse);
        assert_eq!(trash.remove("log/none", now - day).unwrap(), Removed::Absent);
        trash.sync().unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn what_a_crash_left_in_the_trash_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        trash(dir.path()).put_everything_back().unwrap();
        let now = SystemTime::now();
        object(dir.path(), ".nix-stored/trash/nar/lost", now);
        object(dir.path(), ".nix-stored/trash/again", now);
        object(dir.path(), "nar/x", now);
        let again = object(dir.path(), "again", now);
        fs::write(&again, "newer").unwrap();
        trash(dir.path()).put_everything_back().unwrap();
        assert_eq!(fs::read(dir.path().join("nar/lost")).unwrap(), b".nix-stored/trash/nar/lost");
        assert_eq!(fs::read(again).unwrap(), b"newer");
        assert!(!dir.path().join(".nix-stored/trash/again").exists());
    }
    #[test]
    fn what_is_uploaded_at_the_same_time_is_there_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, now) = (trash(dir.path()), SystemTime::now());
        let day = Duration::from_secs(86_400);
        for _ in 0..50 {
            object(dir.path(), "nar/x", now - 2 * day);
            let newer = object(dir.path(), "newer", now);
            std::thread::scope(|scope| {
                scope.spawn(|| trash.remove("nar/x", now - day).unwrap());
                scope.spawn(|| fs::rename(&newer, dir.path().join("nar/x")).unwrap());
            });
            assert_eq!(fs::read(dir.path().join("nar/x")).unwrap(), b"newer");
        }
        assert_eq!(fs::read_dir(dir.path().join(".nix-stored/trash/nar")).unwrap().count(), 0);
    }
}
