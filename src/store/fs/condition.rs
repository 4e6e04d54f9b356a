//! What can be done with the directory, seen without writing to it.

use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, accessat, fstat, fstatvfs, stat};
use rustix::io::Errno;

use super::OWN_FOLDER;
use super::space::Space;
use crate::store::{Condition, StoreError};

/// What errors call the directory.
pub(super) const KEY: &str = "the cache's directory";

/// The directory at `path` has been opened for `space`.
pub(super) fn of(space: &Space, path: &Path) -> Condition {
    if let Err(error) = is_there(space, path) {
        return Condition::Unusable(StoreError::new("looking at", KEY, error));
    }
    match can_be_written(space).and_then(|()| space.check_at_once(KEY, 1)) {
        Ok(()) => Condition::Good,
        Err(error) => Condition::ReadOnly(error),
    }
}

/// The directory that is open may have been removed, or another one mounted over it.
fn is_there(space: &Space, path: &Path) -> io::Result<()> {
    let (open, named) = (fstat(space.root())?, stat(path)?);
    if (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino) {
        return Ok(());
    }
    Err(io::Error::other("there is another one in its place; restart the daemon"))
}

fn can_be_written(space: &Space) -> Result<(), StoreError> {
    let failed = |error: Errno| StoreError::new("writing to", KEY, error);
    for folder in [".", OWN_FOLDER, "nar"] {
        // As who the daemon is now, and not as who has started it.
        let access = Access::WRITE_OK | Access::EXEC_OK;
        match accessat(space.root(), folder, access, AtFlags::EACCESS) {
            // It is made when something is stored in it.
            Err(Errno::NOENT) => {}
            checked => checked.map_err(failed)?,
        }
    }
    let disk = fstatvfs(space.root()).map_err(failed)?;
    // A file system that counts its files, and can have no more.
    if disk.f_files > 0 && disk.f_favail == 0 {
        return Err(failed(Errno::NOSPC));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::*;

    fn space(path: &Path, reserve: u64) -> Space {
        Space::new(Arc::new(OwnedFd::from(fs::File::open(path).unwrap())), reserve)
    }

    #[test]
    fn a_directory_that_is_gone_or_replaced_cannot_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        fs::create_dir(&path).unwrap();
        let space = space(&path, 0);
        assert!(matches!(of(&space, &path), Condition::Good));
        fs::rename(&path, dir.path().join("moved")).unwrap();
        assert!(matches!(of(&space, &path), Condition::Unusable(StoreError::Io { .. })));
        fs::create_dir(&path).unwrap();
        let Condition::Unusable(StoreError::Io { source, .. }) = of(&space, &path) else {
            panic!("another directory is another cache");
        };
        assert!(source.to_string().contains("another one in its place"), "{source}");
    }

    #[test]
    fn a_disk_without_room_above_its_reserve_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = of(&space(dir.path(), u64::MAX), dir.path());
        assert!(matches!(reserved, Condition::ReadOnly(StoreError::Reserve { .. })));
    }
}
