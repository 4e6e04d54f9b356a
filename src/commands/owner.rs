//! Root works as whoever the cache belongs to: files that it makes must be the owner's too, and what
//! the owner has put into the directory must get nobody more rights than he has.
//!
//! All of this comes before any other thread is started, because the kernel knows users by thread.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Gid, Uid, geteuid};
use tracing::{info, warn};

/// For a command on the cache in `directory`, which becomes the working directory.
pub(super) fn become_owner(directory: &mut PathBuf) -> anyhow::Result<()> {
    let path = directory.display().to_string();
    let metadata =
        std::fs::metadata(&*directory).with_context(|| match directory.try_exists() {
            Ok(false) => format!("there is no cache in {path} (NIX_STORED_PATH)"),
            _ => format!("cannot look at the cache in {path} (NIX_STORED_PATH)"),
        })?;
    if !metadata.is_dir() {
        bail!("{path} is no directory (NIX_STORED_PATH)");
    }
    if !geteuid().is_root() {
        warn_if_reading_is_use(directory, &metadata);
        return Ok(());
    }
    if metadata.uid() == 0 {
        return Ok(());
    }
    // The way there may be root's alone: systemd has the state of dynamic users in
    // /var/lib/private/.
    std::env::set_current_dir(&*directory).with_context(|| format!("cannot enter {path}"))?;
    *directory = ".".into();
    become_user_of(&metadata).with_context(|| cannot_become(&metadata, &path))
}

/// For the daemon, which must be able to find the directory by its path at any time. One that is
/// not there will be root's own. The user that the daemon is from now on, if that is another one.
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
            "user {user}, whose cache {path} is, cannot reach it; let that user enter the \
             directories above it, or let root own it"
        )
    })?;
    info!(
        "from now on the daemon is user {user}, the owner of {path}; on SIGHUP it reads only files \
         that this user may read"
    );
    Ok(Some(user))
}

fn cannot_become(metadata: &Metadata, path: &str) -> String {
    format!("cannot become user {}, whose cache {path} is", metadata.uid())
}

fn become_user_of(metadata: &Metadata) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)
}

/// The system lets only a file's owner read it without a trace in its access time.
fn warn_if_reading_is_use(path: &Path, metadata: &Metadata) {
    let unrecorded = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RDONLY;
    let recorded = rustix::fs::statvfs(path).is_ok_and(|disk| !disk.f_flag.intersects(unrecorded));
    if recorded && geteuid().as_raw() != metadata.uid() {
        warn!(
            "{} is another user's cache: garbage collection will take that its narinfos are read \
             now for use; run this as root, or as user {}",
            path.display(),
            metadata.uid()
        );
    }
}
