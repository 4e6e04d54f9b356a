//! Checks whether the directory is usable and writable, without writing to it.

use rustix::fs::{Access, AtFlags, accessat, fstatvfs};
use rustix::io::Errno;

use super::folder::OWN_FOLDER;
use super::open_root::OpenRoot;
use super::root::Root;
use super::space::Space;
use crate::store::{Availability, StoreError};

/// The key in errors about the directory.
pub(super) const DIRECTORY_KEY: &str = "the cache's directory";

/// Checks the directory at the configured path.
pub(super) fn check(root: &Root, space: &Space) -> Availability {
    let open = match root.check_path() {
        Ok(open) => open,
        Err(unusable) => return Availability::Unusable(unusable.into()),
    };
    match can_be_written(&open).and_then(|()| space.check_at_once(DIRECTORY_KEY, 1)) {
        Ok(()) => Availability::ReadWrite,
        Err(error) => Availability::ReadOnly(error),
    }
}

fn can_be_written(root: &OpenRoot) -> Result<(), StoreError> {
    let failed = |error: Errno| StoreError::new("writing to", DIRECTORY_KEY, error);
    for folder in [".", OWN_FOLDER, "nar"] {
        match may_write(root, folder) {
            // The directory is created when an object is stored in it.
            Err(Errno::NOENT) => {}
            checked => checked.map_err(failed)?,
        }
    }
    let disk = fstatvfs(root).map_err(failed)?;
    // The file system has no free inodes.
    if disk.f_files > 0 && disk.f_favail == 0 {
        return Err(failed(Errno::NOSPC));
    }
    Ok(())
}

/// Checks the permissions of the effective user, or of the real user if the kernel or a sandbox
/// supports only that. The two differ only in a process that has changed its user.
fn may_write(root: &OpenRoot, folder: &str) -> Result<(), Errno> {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    match accessat(root, folder, access, AtFlags::EACCESS) {
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
            accessat(root, folder, access, AtFlags::empty())
        }
        checked => checked,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::store::fs::root::Role;

    fn check_dir(path: &Path, reserve: u64) -> Availability {
        let root = Arc::new(Root::open(path, Role::Command).unwrap());
        check(&root, &Space::new(Arc::clone(&root), reserve))
    }

    #[test]
    fn a_missing_or_replaced_directory_is_unusable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        fs::create_dir(&path).unwrap();
        let root = Arc::new(Root::open(&path, Role::Command).unwrap());
        let space = Space::new(Arc::clone(&root), 0);
        assert!(matches!(check(&root, &space), Availability::ReadWrite));
        fs::rename(&path, dir.path().join("moved")).unwrap();
        assert!(matches!(check(&root, &space), Availability::Unusable(StoreError::Unusable(_))));
        fs::create_dir(&path).unwrap();
        assert!(matches!(check(&root, &space), Availability::Unusable(StoreError::Unusable(_))));
    }

    #[test]
    fn a_disk_below_its_reserve_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = check_dir(dir.path(), u64::MAX);
        assert!(matches!(reserved, Availability::ReadOnly(StoreError::Reserve { .. })));
    }
}
