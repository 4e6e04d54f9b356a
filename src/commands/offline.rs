//! What all commands that work on the cache itself have in common.

use std::fs::Metadata;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Gid, Uid, geteuid, getuid};
use tracing::warn;

use super::opening::open_existing;
use super::progress::Progress;
use crate::cache::gc::Inventory;
use crate::cache::{Agent, Cache};
use crate::config::{Config, Location};
use crate::logging;

/// Runs `work`, for the command with the name `by`, on the configured cache. There must be one: a
/// command does not make a cache where none is.
pub(super) fn on_cache(
    by: &str,
    mut config: Config,
    work: impl AsyncFnOnce(Cache) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    logging::init(config.log_level, config.log_format);
    let agent = agent(by);
    match &mut config.location {
        Location::Directory(path) => become_owner(path)?,
        #[cfg(feature = "s3")]
        Location::Bucket(_) => {}
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(async {
            let store = open_existing(&config).await?;
            let cache = Cache::new(store, config.cache_info, config.admission);
            work(cache.with_agent(agent)).await
        })
}

/// Whom the log names for what a command removes. On a terminal nobody keeps a log, and whoever sits
/// there hears from the command itself.
fn agent(by: &str) -> Agent {
    if std::io::stderr().is_terminal() {
        return Agent::onlooker();
    }
    Agent::named(format!("nix-stored {by}, user {}", getuid().as_raw()))
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

/// Root works as whoever the cache belongs to: files that a command makes must be the daemon's too.
/// This comes before any other thread is started, because the kernel knows users by thread.
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
    let (user, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    let failed = || format!("cannot become user {}, whose cache {path} is", metadata.uid());
    rustix::thread::set_thread_groups(&[]).with_context(failed)?;
    rustix::thread::set_thread_res_gid(group, group, group).with_context(failed)?;
    rustix::thread::set_thread_res_uid(user, user, user).with_context(failed)?;
    Ok(())
}

/// What the cache holds; a bar is shown meanwhile.
pub(super) async fn look(cache: &Cache) -> anyhow::Result<Inventory> {
    let mut progress = Progress::new();
    Ok(cache.inventory(|objects| progress.found(objects)).await?)
}
