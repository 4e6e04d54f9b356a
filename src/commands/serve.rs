//! `nix-stored serve`: the daemon itself.

use std::sync::Arc;

use anyhow::Context;
use tracing::{info, warn};

use super::signals::stop_on_signals;
use crate::cache::Cache;
use crate::config::{Config, Requirement};
use crate::net::Listener;
use crate::store::FsStore;
use crate::{http, logging, net};

/// Serves the cache until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    logging::init(config.log_level, config.log_format);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let stop = stop_on_signals(|name| {
        info!(
            "got {name}; no new connections, transfers have {} s to finish",
            net::GRACE.as_secs()
        );
    })?;
    let store = FsStore::open(&config.path, config.min_free_space)?;
    let listener = Listener::bind(&config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let access = config.users.access(listener.is_local());

    let path = std::path::absolute(&config.path).unwrap_or(config.path);
    info!("nix-stored {} serves {}", env!("CARGO_PKG_VERSION"), path.display());
    say_who_may_upload(&access.write, listener.is_local());
    say_what_to_type(&listener.to_string());

    let cache = Cache::new(Arc::new(store), config.cache_info, config.admission);
    #[cfg(feature = "upstream")]
    let cache = with_upstreams(cache, &config.upstreams)?;
    #[cfg(feature = "pages")]
    let cache = cache.with_limits_shown(config.retention);
    let cache = Arc::new(cache);
    let collecting = Arc::clone(&cache).collect_regularly(config.retention, stop.clone());
    let collecting = tokio::spawn(collecting);
    let drained = net::serve(listener, http::app(cache, access), stop).await;
    // It ends between two removals.
    collecting.await.context("the collector panicked")?;
    match drained.cut_off {
        0 => info!("stopped; every transfer was finished"),
        count => warn!("stopped; {count} connections were cut off after the time of grace"),
    }
    Ok(())
}

#[cfg(feature = "upstream")]
fn with_upstreams(cache: Cache, config: &crate::config::Upstreams) -> anyhow::Result<Cache> {
    if config.list.is_empty() {
        return Ok(cache);
    }
    for upstream in &config.list {
        info!("what is not here is asked of {upstream}");
    }
    Ok(cache.with_upstreams(crate::cache::upstream::Upstreams::new(config)?))
}

fn say_who_may_upload(write: &Requirement, local: bool) {
    match write {
        Requirement::Anyone if local => warn!(
            "anyone on this machine may upload, because no user is configured; set \
             NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE before others can reach it"
        ),
        Requirement::Anyone => warn!("anyone may upload, because NIX_STORED_ANONYMOUS_WRITE=1"),
        Requirement::User(_) => {}
        Requirement::Nobody => info!(
            "nobody may upload; set NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE to \
             change that"
        ),
    }
}

/// The first lines that a newcomer sees.
fn say_what_to_type(url: &str) {
    info!("listening on {url}");
    info!("put builds in:  nix copy --to {url} ./result");
    info!(
        "take them out:  nix build --extra-substituters {url} …  (or in nix.conf: extra-substituters = {url})"
    );
}
