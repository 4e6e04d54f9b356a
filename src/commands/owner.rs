//! Switches from root to the owner of the cache: new files must belong to the owner, and files that the
//! owner has put into the directory must not give the owner the rights of root.
//!
//! These functions must run before any other thread is started, because on Linux the user is an attribute
//! of the thread.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Gid, Uid, geteuid};
use tracing::{info, warn};

/// Switches a command to the owner of the cache in `directory`. If root switches the user, `directory`
/// becomes the working directory.
pub(super) fn become_owner(directory: &mut PathBuf) -> anyhow::Result<()> {
    let path = directory.display().to_string();
    let metadata =
        std::fs::metadata(&*directory).with_context(|| match directory.try_exists() {
            Ok(false) => format!("there is no cache in {path} (NIX_STORED_PATH)"),
            _ => format!("cannot access the cache in {path} (NIX_STORED_PATH)"),
        })?;
    if !metadata.is_dir() {
        bail!("{path} is not a directory (NIX_STORED_PATH)");
    }
    if !geteuid().is_root() {
        warn_if_reading_is_use(directory, &metadata);
        return Ok(());
    }
    if metadata.uid() == 0 {
        return Ok(());
    }
    // Only root may be able to enter the parent directories: systemd keeps the state of dynamic users
    // in /var/lib/private/.
    std::env::set_current_dir(&*directory).with_context(|| format!("cannot enter {path}"))?;
    *directory = ".".into();
    become_user_of(&metadata).with_context(|| cannot_become(&metadata, &path))
}

/// Switches the daemon to the owner of `directory`, and returns the new user if it changed. The daemon
/// must be able to reach the directory by its path at any time. A directory that does not exist yet
/// will belong to root.
pub(super) fn serve_as_owner(directory: &Path) -> anyhow::Result<Option<u32>> {
    let path = directory.display().to_string();
    let Some(metadata) = std::fs::metadata(directory).ok().filter(Metadata::is_dir) else {
        return Ok(None);
    };
    let user = metadata.uid();
    if !geteuid().is_root() || user == 0 {
        return Ok(None);
    }
    become_user_of(&metadata).with_context(|| cannot_become(&metadata, &path))?;
    std::fs::metadata(directory).with_context(|| {
        format!(
            "user {user}, the owner of {path}, cannot reach it; let this user enter the parent \
             directories, or make root the owner"
        )
    })?;
    info!(
        "switched to user {user}, the owner of {path}; on SIGHUP, the daemon can reload only files \
         that this user may read"
    );
    Ok(Some(user))
}

fn cannot_become(metadata: &Metadata, path: &str) -> String {
    format!("cannot switch to user {}, the owner of {path}", metadata.uid())
}

fn become_user_of(metadata: &Metadata) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)
}

/// Warns a user that neither is root nor owns the cache: Linux allows only root and the owner to read a
/// file without updating its access time (`O_NOATIME`, open(2)).
fn warn_if_reading_is_use(path: &Path, metadata: &Metadata) {
    let unrecorded = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RDONLY;
    let recorded = rustix::fs::statvfs(path).is_ok_and(|disk| !disk.f_flag.intersects(unrecorded));
    if recorded && geteuid().as_raw() != metadata.uid() {
        warn!(
            "{} belongs to another user, so reading its narinfos counts as use for garbage collection; \
             run this command as root or as user {}",
            path.display(),
            metadata.uid()
        );
    }
}
