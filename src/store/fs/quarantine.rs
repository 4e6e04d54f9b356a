//! Quarantines damaged objects instead of removing them, so that an operator can inspect them.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::folder::{OWN_FOLDER, rename_new, split};
use super::open_root::OpenRoot;
use super::read::metadata;

/// Moves the object at `key` into the quarantine, if it still has this entity tag. False if it has
/// not, or is gone.
pub(super) fn quarantine(root: &OpenRoot, key: &str, etag: &[u8]) -> io::Result<bool> {
    if !is_it(root, key, etag)? {
        return Ok(false);
    }
    let (folder, base) = split(key);
    let aside = match folder {
        "." => format!("{OWN_FOLDER}/quarantine"),
        folder => format!("{OWN_FOLDER}/quarantine/{folder}"),
    };
    let aside_fd = root.make_folder(&aside)?;
    let Some(name) = move_beside(root, key, &aside_fd, base)? else {
        return Ok(false);
    };
    // The object was replaced between the check and the move, so the new one was not found damaged.
    // If yet another one was stored since, it stays in the quarantine.
    if !is_it(&aside_fd, &name, etag)? {
        return match rename_new(&aside_fd, name.as_str(), root, key) {
            Ok(()) | Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
    // Or a power cut could bring it back.
    let synced = root.sync(folder, root.folder(folder)?);
    root.sync(&aside, &aside_fd).and(synced)?;
    Ok(true)
}

fn is_it(folder: impl AsFd, name: &str, etag: &[u8]) -> io::Result<bool> {
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
    aside: impl AsFd,
    base: &str,
) -> io::Result<Option<String>> {
    let numbered = (1u32..).map(|number| format!("{base}.{number}"));
    for name in std::iter::once(base.to_owned()).chain(numbered) {
        match rename_new(root, key, &aside, name.as_str()) {
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
        Root::open(dir, Role::Command).unwrap().look().unwrap()
    }

    fn etag(path: &Path) -> Vec<u8> {
        metadata(&rustix::fs::stat(path).unwrap()).etag.to_vec()
    }

    #[test]
    fn a_quarantined_object_keeps_its_name_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join(".nix-stored/quarantine");
        let root = open(dir.path());
        for (key, folder) in [("x.narinfo", ""), ("a/b/out.doi", "a/b"), ("a/c/out.doi", "a/c")] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            for round in ["first", "second", "third"] {
                fs::write(dir.path().join(key), round).unwrap();
                let etag = etag(&dir.path().join(key));
                assert!(quarantine(&root, key, &etag).unwrap());
                assert!(!quarantine(&root, key, &etag).unwrap());
            }
            assert_eq!(fs::read(aside.join(key)).unwrap(), b"first");
            assert_eq!(fs::read(aside.join(format!("{key}.1"))).unwrap(), b"second");
            assert_eq!(fs::read(aside.join(format!("{key}.2"))).unwrap(), b"third");
        }
    }

    #[test]
    fn what_was_replaced_stays() {
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
