//! Removes unused objects while other threads and processes may use them.
//!
//! Between the check of an object's last use and its unlink, another thread or process could record
//! a use and depend on the object. So the object is first moved to the trash: from then on no use
//! can be recorded under its name, and a second check of its access time shows whether it was used
//! before the move. If so, the object is moved back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::folder::{OWN_FOLDER, each, open_here, rename_new, split, stat, unlink};
use super::open_root::OpenRoot;
use super::read::last_use;
use crate::store::Removed;

/// The directory of objects during their removal.
#[derive(Debug, Default)]
pub(super) struct Trash(Mutex<TrashState>);

#[derive(Debug, Default)]
struct TrashState {
    /// The directory of the removals: a plan for one directory is not executed in another.
    generation: u64,
    /// Directories from which objects were removed since the last sync.
    unsynced: Vec<String>,
    /// The directory in the trash that was used last, kept open, and the directory of the cache (such as
    /// `nar`) whose objects it holds.
    folder: Option<(String, Arc<OwnedFd>)>,
}

/// Returns the directory in the trash for objects of `folder`.
fn trash_of(folder: &str) -> String {
    match folder {
        "." => format!("{OWN_FOLDER}/trash"),
        folder => format!("{OWN_FOLDER}/trash/{folder}"),
    }
}

impl Trash {
    /// Restores the objects that a crash left in the trash; later removals apply to this directory.
    /// The caller must hold the collection lock.
    pub(super) fn begin(&self, root: &OpenRoot) -> io::Result<()> {
        // A killed process may have removed narinfos without syncing their directory, which must be
        // synced before a NAR is removed.
        let unsynced = vec![".".to_owned()];
        *self.state() = TrashState { generation: root.generation, unsynced, folder: None };
        match root.folder(&trash_of(".")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            trash => put_back(root, trash?, ""),
        }
    }

    fn state(&self) -> MutexGuard<'_, TrashState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remove(
        &self,
        root: &OpenRoot,
        key: &str,
        unused_since: SystemTime,
    ) -> io::Result<Removed> {
        if self.state().generation != root.generation {
            let why = "the cache's directory was replaced after the collection scanned it";
            return Err(io::Error::other(why));
        }
        let in_use = |stat: &Stat| last_use(stat) > unused_since;
        match stat(root, key)? {
            None => return Ok(Removed::Absent),
            Some(stat) if in_use(&stat) => return Ok(Removed::InUse),
            Some(_) => {}
        }
        let (folder, base) = split(key);
        let mut trash = self.trash(root, folder)?;
        match rustix::fs::renameat(root, key, &trash, base) {
            Err(Errno::NOENT) => {
                // The trash was removed, or another process removed the object.
                self.state().folder = None;
                trash = self.trash(root, folder)?;
                match rustix::fs::renameat(root, key, &trash, base) {
                    Err(Errno::NOENT) => return Ok(Removed::Absent),
                    moved => moved?,
                }
            }
            moved => moved?,
        }
        if stat(&trash, base)?.as_ref().is_some_and(in_use) {
            restore(&trash, base, root, key)?;
            return Ok(Removed::InUse);
        }
        unlink(&trash, base)?;
        let mut state = self.state();
        if !state.unsynced.iter().any(|known| known == folder) {
            state.unsynced.push(folder.to_owned());
        }
        Ok(Removed::Gone)
    }

    fn trash(&self, root: &OpenRoot, folder: &str) -> io::Result<Arc<OwnedFd>> {
        if let Some((of, trash)) = &self.state().folder
            && of == folder
        {
            return Ok(Arc::clone(trash));
        }
        let trash = Arc::new(root.make_folder(&trash_of(folder))?);
        self.state().folder = Some((folder.to_owned(), Arc::clone(&trash)));
        Ok(trash)
    }

    /// Makes the previous removals durable. Failed syncs are retried in the next call.
    pub(super) fn sync(&self, root: &OpenRoot) -> io::Result<()> {
        let unsynced = std::mem::take(&mut self.state().unsynced);
        for (at, folder) in unsynced.iter().enumerate() {
            if let Err(error) = sync_removals(root, folder) {
                self.state().unsynced.extend_from_slice(&unsynced[at..]);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn sync_removals(root: &OpenRoot, folder: &str) -> io::Result<()> {
    // The trash is synced as well, or a removed object could reappear there and be restored.
    for key in [trash_of(folder), folder.to_owned()] {
        match root.folder(&key) {
            // Its contents were removed with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => root.sync(&key, opened?)?,
        }
    }
    Ok(())
}

/// Moves all objects in `trash` back to their directories below `folder`.
fn put_back(root: &OpenRoot, trash: OwnedFd, folder: &str) -> io::Result<()> {
    each(&trash, |name, kind| {
        let Ok(text) = name.to_str() else {
            return Ok(());
        };
        let key = format!("{folder}{text}");
        match kind {
            FileType::Directory => put_back(root, open_here(&trash, name)?, &format!("{key}/")),
            FileType::RegularFile => restore(&trash, name, root, &key),
            // The daemon creates no such entries.
            _ => Ok(()),
        }
    })
}

fn restore(
    trash: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    root: &OpenRoot,
    key: &str,
) -> io::Result<()> {
    let restored = match rename_new(&trash, name, root, key) {
        // The folder of the object was removed meanwhile.
        Err(Errno::NOENT) => {
            root.make_folder(split(key).0)?;
            rename_new(&trash, name, root, key)
        }
        restored => restored,
    };
    match restored {
        Ok(()) => Ok(()),
        // The object was uploaded again meanwhile.
        Err(Errno::EXIST) => Ok(unlink(trash, name)?),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;
    use crate::store::fs::root::{Role, Root};

    fn open(dir: &Path) -> Arc<OpenRoot> {
        Root::open(dir, Role::Command).unwrap().check_path().unwrap()
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
    fn only_unused_objects_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, root) = (Trash::default(), open(dir.path()));
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let old = object(dir.path(), "nar/old", now - 2 * day);
        let new = object(dir.path(), "nar/new", now);
        assert_eq!(trash.remove(&root, "nar/old", now - day).unwrap(), Removed::Gone);
        assert_eq!(trash.remove(&root, "nar/old", now - day).unwrap(), Removed::Absent);
        assert_eq!(trash.remove(&root, "nar/new", now - day).unwrap(), Removed::InUse);
        assert_eq!(trash.remove(&root, "log/none", now - day).unwrap(), Removed::Absent);
        trash.sync(&root).unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn objects_that_a_crash_left_in_the_trash_are_restored() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, root) = (Trash::default(), open(dir.path()));
        trash.begin(&root).unwrap();
        let now = SystemTime::now();
        object(dir.path(), ".nix-stored/trash/nar/lost", now);
        object(dir.path(), ".nix-stored/trash/again", now);
        object(dir.path(), "nar/x", now);
        let again = object(dir.path(), "again", now);
        fs::write(&again, "newer").unwrap();
        trash.begin(&root).unwrap();
        assert_eq!(fs::read(dir.path().join("nar/lost")).unwrap(), b".nix-stored/trash/nar/lost");
        assert_eq!(fs::read(again).unwrap(), b"newer");
        assert!(!dir.path().join(".nix-stored/trash/again").exists());
    }

    #[test]
    fn an_object_that_is_uploaded_during_its_removal_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, root, now) = (Trash::default(), open(dir.path()), SystemTime::now());
        let day = Duration::from_secs(86_400);
        for _ in 0..50 {
            object(dir.path(), "nar/x", now - 2 * day);
            let newer = object(dir.path(), "newer", now);
            std::thread::scope(|scope| {
                scope.spawn(|| trash.remove(&root, "nar/x", now - day).unwrap());
                scope.spawn(|| fs::rename(&newer, dir.path().join("nar/x")).unwrap());
            });
            assert_eq!(fs::read(dir.path().join("nar/x")).unwrap(), b"newer");
        }
        assert_eq!(fs::read_dir(dir.path().join(".nix-stored/trash/nar")).unwrap().count(), 0);
    }

    #[test]
    fn the_trash_may_be_removed_at_any_time_and_a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, root, now) = (Trash::default(), open(dir.path()), SystemTime::now());
        let old = now - Duration::from_secs(86_400);
        for key in ["nar/a", "nar/b", "nar/c"] {
            object(dir.path(), key, old);
        }
        assert_eq!(trash.remove(&root, "nar/a", now).unwrap(), Removed::Gone);
        fs::remove_dir_all(dir.path().join(".nix-stored")).unwrap();
        assert_eq!(trash.remove(&root, "nar/b", now).unwrap(), Removed::Gone);
        trash.sync(&root).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::remove_dir_all(dir.path().join(".nix-stored/trash")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(".nix-stored/trash")).unwrap();
        fs::write(elsewhere.path().join("secret"), "").unwrap();
        let error = trash.begin(&root).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(trash.remove(&root, "nar/c", now).is_err());
        assert!(dir.path().join("nar/c").exists() && elsewhere.path().join("secret").exists());
    }

    #[test]
    fn a_plan_for_one_directory_is_not_executed_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let root = Root::open(&path, Role::Daemon).unwrap();
        let trash = Trash::default();
        let now = SystemTime::now();
        object(&path, "nar/x", now - Duration::from_secs(86_400));
        trash.begin(&root.check_path().unwrap()).unwrap();
        fs::rename(&path, dir.path().join("before")).unwrap();
        fs::create_dir(&path).unwrap();
        object(&path, "nar/x", now - Duration::from_secs(86_400));
        let second = root.check_path().unwrap();
        let error = trash.remove(&second, "nar/x", now).unwrap_err();
        assert!(error.to_string().contains("replaced"), "{error}");
        trash.begin(&second).unwrap();
        assert_eq!(trash.remove(&second, "nar/x", now).unwrap(), Removed::Gone);
    }
}
