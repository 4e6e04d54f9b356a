//! What all commands that work on the cache itself have in common.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use rustix::process::getuid;

use super::opening::open_existing;
use super::owner::become_owner;
use super::progress_bar::CommandProgressBar;
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
            let cache = cache.with_agent(agent);
            let done = work(cache.clone()).await;
            // Nothing of ours stays behind that others wait for.
            if let Err(error) = cache.flush().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the last uses were not recorded"
                );
            }
            done
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

/// What the cache holds; a bar is shown meanwhile.
pub(super) async fn look(cache: &Cache) -> anyhow::Result<Inventory> {
    let mut bar = CommandProgressBar::new();
    Ok(cache.inventory(|objects| bar.found(objects)).await?)
}
