//! Quarantines damaged objects instead of removing them, so that an operator can inspect them.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::folder::{OWN_FOLDER, rename_new, split};
use super::open_root::OpenRoot;
use super::read::metadata;

/// Moves the object at `key` into the quarantine. Returns false if it is absent or has another
/// entity tag.
pub(super) fn quarantine(root: &OpenRoot, key: &str, etag: &[u8]) -> io::Result<bool> {
    if !has_etag(root, key, etag)? {
        return Ok(false);
    }
    let (folder, base) = split(key);
    let quarantine_folder = match folder {
        "." => format!("{OWN_FOLDER}/quarantine"),
        folder => format!("{OWN_FOLDER}/quarantine/{folder}"),
    };
    let quarantine_fd = root.make_folder(&quarantine_folder)?;
    let Some(name) = move_beside(root, key, &quarantine_fd, base)? else {
        return Ok(false);
    };
    // The object was replaced between the check and the move, and the new object is not known to be
    // damaged: it is moved back. If another object was stored meanwhile, the moved one stays in the
    // quarantine.
    if !has_etag(&quarantine_fd, &name, etag)? {
        return match rename_new(&quarantine_fd, name.as_str(), root, key) {
            Ok(()) | Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
    // Without the sync, a power failure could restore the object.
    let synced = root.sync(folder, root.folder(folder)?);
    root.sync(&quarantine_folder, &quarantine_fd).and(synced)?;
    Ok(true)
}

fn has_etag(folder: impl AsFd, name: &str, etag: &[u8]) -> io::Result<bool> {
    match rustix::fs::statat(folder, name, AtFlags::empty()) {
        Ok(stat) => Ok(metadata(&stat).etag == etag),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Moves `key` to `base` in another directory, or to the first free name like `base.1`. Returns the
/// name, or `None` if there is nothing to move.
fn move_beside(
    root: &OpenRoot,
    key: &str,
    quarantine_folder: impl AsFd,
    base: &str,
) -> io::Result<Option<String>> {
    let numbered = (1u32..).map(|number| format!("{base}.{number}"));
    for name in std::iter::once(base.to_owned()).chain(numbered) {
        match rename_new(root, key, &quarantine_folder, name.as_str()) {
            Ok(()) => return Ok(Some(name)),
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("a folder does not hold every number")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::store::fs::root::{Role, Root};

    fn open(dir: &Path) -> Arc<OpenRoot> {
        Root::open(dir, Role::Command).unwrap().check_path().unwrap()
    }

    fn etag(path: &Path) -> Vec<u8> {
        metadata(&rustix::fs::stat(path).unwrap()).etag.to_vec()
    }

    #[test]
    fn a_quarantined_object_keeps_its_name_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine_folder = dir.path().join(".nix-stored/quarantine");
        let root = open(dir.path());
        for (key, folder) in [("x.narinfo", ""), ("a/b/out.doi", "a/b"), ("a/c/out.doi", "a/c")] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            for round in ["first", "second", "third"] {
                fs::write(dir.path().join(key), round).unwrap();
                let etag = etag(&dir.path().join(key));
                assert!(quarantine(&root, key, &etag).unwrap());
                assert!(!quarantine(&root, key, &etag).unwrap());
            }
            assert_eq!(fs::read(quarantine_folder.join(key)).unwrap(), b"first");
            assert_eq!(fs::read(quarantine_folder.join(format!("{key}.1"))).unwrap(), b"second");
            assert_eq!(fs::read(quarantine_folder.join(format!("{key}.2"))).unwrap(), b"third");
        }
    }

    #[test]
    fn a_replaced_object_is_not_quarantined() {
        let dir = tempfile::tempdir().unwrap();
        let (root, object) = (open(dir.path()), dir.path().join("x"));
        fs::write(&object, "false").unwrap();
        let before = etag(&object);
        fs::write(dir.path().join("new"), "right").unwrap();
        fs::rename(dir.path().join("new"), &object).unwrap();
        assert!(!quarantine(&root, "x", &before).unwrap());
        assert_eq!(fs::read(&object).unwrap(), b"right");
    }
}
