//! Checks whether the directory is usable and writable, without writing to it.

use rustix::fs::{Access, AtFlags, accessat, fstatvfs};
use rustix::io::Errno;

use super::folder::OWN_FOLDER;
use super::open_root::OpenRoot;
use super::root::Root;
use super::space::Space;
use crate::store::{Availability, StoreError};

/// The name of the directory in errors.
pub(super) const KEY: &str = "the cache's directory";

/// Checks the directory at the configured path.
pub(super) fn check(root: &Root, space: &Space) -> Availability {
    let open = match root.look() {
        Ok(open) => open,
        Err(unusable) => return Availability::Unusable(unusable.into()),
    };
    match can_be_written(&open).and_then(|()| space.check_at_once(KEY, 1)) {
        Ok(()) => Availability::ReadWrite,
        Err(error) => Availability::ReadOnly(error),
    }
}

fn can_be_written(root: &OpenRoot) -> Result<(), StoreError> {
    let failed = |error: Errno| StoreError::new("writing to", KEY, error);
    for folder in [".", OWN_FOLDER, "nar"] {
        match may_write(root, folder) {
            // It is made when something is stored in it.
            Err(Errno::NOENT) => {}
            checked => checked.map_err(failed)?,
        }
    }
    let disk = fstatvfs(root).map_err(failed)?;
    // A file system that counts its files, and can have no more.
    if disk.f_files > 0 && disk.f_favail == 0 {
        return Err(failed(Errno::NOSPC));
    }
    Ok(())
}

/// Checks with the effective user of the daemon. If the kernel or a sandbox supports only the real
/// user, that is the same, except for a program that changes its user while it runs.
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
    fn a_directory_that_is_gone_or_replaced_cannot_be_used() {
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
    fn a_disk_without_room_above_its_reserve_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let reserved = check_dir(dir.path(), u64::MAX);
        assert!(matches!(reserved, Availability::ReadOnly(StoreError::Reserve { .. })));
    }
}
