//! Directories and files below the cache's directory, always relative to its descriptor.
//!
//! The daemon's own files are opened without following symbolic links, so that a link cannot
//! redirect a sweep or a write. The directories of objects may be links: an administrator may have
//! put `nar/` on another disk.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// The daemon's own folder in the cache's directory.
pub const OWN_FOLDER: &str = ".nix-stored";

/// Splits a key into its folder and the name in it.
pub(super) fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or((".", key))
}

/// Whether a key is in the daemon's own folder.
pub(super) fn is_own(key: &str) -> bool {
    key.strip_prefix(OWN_FOLDER).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Opens the directory `key` below `root`.
pub(super) fn open(root: impl AsFd, key: &str) -> io::Result<OwnedFd> {
    if !is_own(key) {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok(rustix::fs::openat(root, key, flags, Mode::empty())?);
    }
    let mut names = key.split('/');
    let first = names.next().unwrap_or(OWN_FOLDER);
    let mut folder = open_here(&root, first).map_err(|error| explained(&root, first, error))?;
    for name in names {
        folder = open_here(&folder, name).map_err(|error| explained(&folder, name, error))?;
    }
    Ok(folder)
}

/// Opens the directory `name` in `folder`. Fails if it is a symbolic link.
pub(super) fn open_here(folder: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// Explains an error caused by a symbolic link, for which the system reports only `ENOTDIR`.
fn explained(folder: impl AsFd, name: &str, error: Errno) -> io::Error {
    let is_link = || {
        stat(folder, name).is_ok_and(|stat| {
            stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        })
    };
    if [Errno::NOTDIR, Errno::LOOP].contains(&error) && is_link() {
        let why = format!("{name} is a symbolic link; replace it by a directory");
        return io::Error::other(why);
    }
    error.into()
}

/// Returns the metadata of `name` in `folder`, without following a link, or `None` if it is absent.
pub(super) fn stat(folder: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes the file `name` from `folder`.
pub(super) fn unlink(folder: impl AsFd, name: impl rustix::path::Arg) -> Result<(), Errno> {
    rustix::fs::unlinkat(folder, name, AtFlags::empty())
}

/// Calls `found` with the name and the type of each entry of a directory.
pub(super) fn each(
    folder: impl AsFd,
    mut found: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Not every file system reports the type of an entry.
            FileType::Unknown => match stat(&folder, name)? {
                Some(stat) => FileType::from_raw_mode(stat.st_mode),
                // The entry was removed meanwhile.
                None => continue,
            },
            kind => kind,
        };
        found(name, kind)?;
    }
    Ok(())
}

/// Renames a file. Fails with `EEXIST` if the new name exists.
pub(super) fn rename_new(
    from: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    to: impl AsFd,
    new_name: impl rustix::path::Arg + Copy,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(&from, name, &to, new_name, RenameFlags::NOREPLACE) {
        // The file system (such as NFS), the kernel or a sandbox does not support
        // `RENAME_NOREPLACE`.
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP) => {}
        renamed => return renamed,
    }
    match rustix::fs::linkat(&from, name, &to, new_name, AtFlags::empty()) {
        Ok(()) => return unlink(&from, name),
        // Hard links are not supported either, or `name` is a directory.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {}
        Err(error) => return Err(error),
    }
    // Without support of the system, another process can create the name between this check and the
    // rename.
    match rustix::fs::statat(&to, new_name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(from, name, to, new_name),
        Ok(_) => Err(Errno::EXIST),
        Err(error) => Err(error),
    }
}

/// Syncs a directory, or the whole file system if it does not support the sync of a directory (SMB
/// before Linux 5.6).
pub(super) fn sync(folder: impl AsFd) -> io::Result<()> {
    match rustix::fs::fsync(&folder) {
        Err(Errno::INVAL) => Ok(rustix::fs::syncfs(folder)?),
        synced => Ok(synced?),
    }
}

/// Creates the file `name` in `folder`. Fails with `EEXIST` if it exists.
pub(super) fn create(folder: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o644))
}

/// Whether a lock failed because the file system or a sandbox does not support locks.
pub(super) fn has_no_locks(error: Errno) -> bool {
    [Errno::NOSYS, Errno::INVAL, Errno::PERM, Errno::OPNOTSUPP, Errno::NOLCK].contains(&error)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_in_folders_of_objects_but_not_in_the_daemons_own() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        symlink(elsewhere.path(), dir.path().join("nar")).unwrap();
        open(&root, "nar").unwrap();
        fs::create_dir(dir.path().join(OWN_FOLDER)).unwrap();
        symlink(elsewhere.path(), dir.path().join(".nix-stored/pins")).unwrap();
        let error = open(&root, ".nix-stored/pins").unwrap_err();
        assert!(error.to_string().contains("pins is a symbolic link"), "{error}");
        fs::create_dir(elsewhere.path().join("trash")).unwrap();
        assert!(open(&root, ".nix-stored/pins/trash").is_err());
        fs::remove_file(dir.path().join(".nix-stored/pins")).unwrap();
        let missing = open(&root, ".nix-stored/pins").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_daemons_own_folder_is_distinguished_from_similar_names() {
        assert!(is_own(".nix-stored") && is_own(".nix-stored/pins"));
        assert!(!is_own(".nix-stored-2") && !is_own("nar") && !is_own("."));
    }
}
