//! Putting aside what is false, in place of removing it: somebody may want to know what happened.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::read::metadata;
use super::{make_durably, rename_new};

/// Moves the object at `key` below `folder`, if it still has this entity tag. False if it has not,
/// or is gone.
pub(super) fn put_aside(root: &Path, folder: &Path, key: &str, etag: &[u8]) -> io::Result<bool> {
    let (from, aside) = (root.join(key), folder.join(key));
    let is_it = |path: &Path| match rustix::fs::stat(path) {
        Ok(stat) => Ok(metadata(&stat).etag == etag),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(io::Error::from(error)),
    };
    if !is_it(&from)? {
        return Ok(false);
    }
    if let Some(parent) = aside.parent() {
        make_durably(parent)?;
    }
    let Some(aside) = move_beside(&from, &aside)? else {
        return Ok(false);
    };
    // It was replaced between the look and the move: what came is not what was found false. Where
    // another one has come since, it stays here.
    if !is_it(&aside)? {
        return match rename_new(CWD, &aside, CWD, &from) {
            Ok(()) | Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
    // Or a power cut could bring it back.
    File::open(from.parent().unwrap_or(root))?.sync_all()?;
    Ok(true)
}

/// Moves `from` to `to`, or to the first free name like `to.1`; says which, or none if there is
/// nothing to move.
fn move_beside(from: &Path, to: &Path) -> io::Result<Option<PathBuf>> {
    let numbered = (1u32..).map(|number| format!("{}.{number}", to.display()).into());
    for name in std::iter::once(to.to_owned()).chain(numbered) {
        match rename_new(CWD, from, CWD, &name) {
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

    use super::*;

    fn etag(path: &Path) -> Vec<u8> {
        metadata(&rustix::fs::stat(path).unwrap()).etag.to_vec()
    }

    #[test]
    fn what_is_put_aside_keeps_its_name_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join(".nix-stored/quarantine");
        for (key, folder) in [("x.narinfo", ""), ("a/b/out.doi", "a/b"), ("a/c/out.doi", "a/c")] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            for round in ["first", "second", "third"] {
                fs::write(dir.path().join(key), round).unwrap();
                let etag = etag(&dir.path().join(key));
                assert!(put_aside(dir.path(), &aside, key, &etag).unwrap());
                assert!(!put_aside(dir.path(), &aside, key, &etag).unwrap());
            }
            assert_eq!(fs::read(aside.join(key)).unwrap(), b"first");
            assert_eq!(fs::read(aside.join(format!("{key}.1"))).unwrap(), b"second");
            assert_eq!(fs::read(aside.join(format!("{key}.2"))).unwrap(), b"third");
        }
    }

    #[test]
    fn what_was_replaced_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (aside, object) = (dir.path().join("aside"), dir.path().join("x"));
        fs::write(&object, "false").unwrap();
        let before = etag(&object);
        fs::write(dir.path().join("new"), "right").unwrap();
        fs::rename(dir.path().join("new"), &object).unwrap();
        assert!(!put_aside(dir.path(), &aside, "x", &before).unwrap());
        assert_eq!(fs::read(&object).unwrap(), b"right");
    }
}
