//! Setup that all commands share that work directly on the cache.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use rustix::process::getuid;

use super::open_store::open_existing;
use super::owner::become_owner;
use super::progress_bar::CommandProgressBar;
use crate::cache::{Actor, Cache};
use crate::config::{Config, Location};
use crate::inventory::Inventory;
use crate::logging;
use crate::logging::with_causes;

/// A cache, and the name that the audit log gives for changes by the command.
pub(super) struct OpenCache {
    pub cache: Arc<Cache>,
    pub actor: Actor,
}

/// Runs `work` of the command named `by` on the configured cache. Fails if there is no cache: commands
/// do not create one.
pub(super) fn on_cache(
    by: &str,
    mut config: Config,
    work: impl AsyncFnOnce(OpenCache) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    logging::init(config.log_level, config.log_format);
    let actor = actor(by);
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
            let cache = Arc::new(cache);
            let done = work(OpenCache { cache: Arc::clone(&cache), actor }).await;
            // Also after an error: the flush records uses and waits until locks are released.
            if let Err(error) = cache.flush().await {
                tracing::warn!(
                    error = %with_causes(&error),
                    "the last uses were not recorded"
                );
            }
            done
        })
}

/// The name that the audit log gives for removals by a command. On a terminal nothing is logged,
/// because the command prints its result there.
fn actor(by: &str) -> Actor {
    if std::io::stderr().is_terminal() {
        return Actor::silent();
    }
    Actor::named(format!("nix-stored {by}, user {}", getuid().as_raw()))
}

/// Reads the contents of the cache, with a progress bar.
pub(super) async fn load_inventory(cache: &Cache) -> anyhow::Result<Inventory> {
    let mut bar = CommandProgressBar::new();
    Ok(cache.inventory(|objects| bar.found(objects)).await?)
}
