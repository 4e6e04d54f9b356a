//! `nix-stored serve`: the daemon.

use std::sync::Arc;

use anyhow::Context;
use tracing::{info, warn};

use super::open_store::open;
use super::owner::serve_as_owner;
use super::reload::Reload;
#[cfg(feature = "tls")]
use super::reload::warn_if_not_valid_now;
use super::signals::{hangups, stop_on_signals};
use crate::browse::Browser;
use crate::cache::{Actor, Cache};
use crate::config::{Config, Location, Requirement};
use crate::http::{AccessPolicy, AppState, Backend};
use crate::logging::with_causes;
use crate::net::{Bound, Inherited, Listener, systemd};
use crate::retention::Collector;
use crate::store::Stored;
use crate::{http, logging, net};

/// Maximum time to record the last uses before the daemon exits.
const FLUSH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves the cache until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    logging::init(config.log_level, config.log_format);
    // Before other threads are started, and while root may still bind privileged ports. The files with
    // passwords and keys have already been read.
    let inherited = Inherited::take().context("cannot listen on the sockets passed by systemd")?;
    let bound = if inherited.is_empty() {
        Bound::bind(&config.listen)
            .with_context(|| format!("cannot listen on {}", config.listen))?
    } else {
        Bound::from(inherited)
    };
    let user = match &config.location {
        Location::Directory(path) => serve_as_owner(path)?,
        #[cfg(feature = "s3")]
        Location::Bucket(_) => None,
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(serve(config, bound, user))
}

async fn serve(config: Config, bound: Bound, user: Option<u32>) -> anyhow::Result<()> {
    let stop = stop_on_signals(|name| {
        systemd::stopping();
        info!(
            "received {name}: no new connections, transfers have {} s to finish",
            net::DRAIN_TIMEOUT.as_secs()
        );
    })?;
    let hangups = hangups()?;
    let store = match (open(&config).await, user) {
        (Err(error), Some(user)) => Err(error).with_context(|| {
            format!(
                "user {user} owns the cache but cannot use it; if root has created files in it, \
                 run: chown -R {user} {}",
                config.location
            )
        })?,
        (opened, _) => opened?,
    };
    let listener = Listener::on(bound).context("cannot accept connections")?;
    let local = listener.is_local();
    let access = config.users.access(local);
    #[cfg(feature = "tls")]
    let tls = config.tls.as_ref().map(net::TlsAcceptorHandle::from);
    #[cfg(feature = "tls")]
    let listener = listener.encrypted(tls.clone());

    info!(
        "nix-stored {}: serving {}",
        env!("CARGO_PKG_VERSION"),
        absolute(config.location.clone())
    );
    log_write_access(&access.write);
    #[cfg(feature = "tls")]
    config.tls.iter().for_each(warn_if_not_valid_now);
    log_usage(&listener.urls());

    let cache = Cache::new(store, config.cache_info.clone(), config.admission.clone());
    #[cfg(feature = "s3")]
    let cache = cache.with_redirects(config.s3_redirect);
    let cache = Arc::new(cache);
    write_cache_info(&cache).await;
    let collector = Collector::new(Arc::clone(&cache), Actor::collector());
    let access_policy = AccessPolicy::from(access);
    let backend = backend(&cache, &config)?;
    let browser = Browser::new(Arc::clone(&cache), Some(config.retention));
    let state = AppState::new(Arc::clone(&cache), Arc::clone(&backend), access_policy.clone());
    let state = state.with_browser(browser);
    let collector = tokio::spawn(collector.run(config.retention, stop.clone()));
    let reload = Reload {
        config,
        local,
        access_policy,
        #[cfg(feature = "upstream")]
        mirror: backend,
        #[cfg(feature = "tls")]
        tls,
    };
    tokio::spawn(reload.on_each(hangups));
    tokio::spawn(systemd::keep_alive());
    systemd::ready();
    let drained = net::serve(listener, http::app(state), stop).await;
    // The collector stops between two removals.
    collector.await.context("the collector panicked")?;
    match tokio::time::timeout(FLUSH_TIMEOUT, cache.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            warn!(error = %with_causes(&error), "the last uses were not recorded");
        }
        Err(_) => warn!("the last uses were not recorded in time"),
    }
    match drained.cut_off {
        0 => info!("stopped; all transfers were finished"),
        count => warn!("stopped; {count} connections were closed during a transfer"),
    }
    Ok(())
}

/// Writes `nix-cache-info`, for clients that read the directory or the bucket without the daemon.
async fn write_cache_info(cache: &Cache) {
    match cache.keep_info().await {
        Ok(None) => {}
        Ok(Some(Stored::Created)) => info!("wrote nix-cache-info"),
        Ok(Some(Stored::Replaced)) => {
            warn!("replaced nix-cache-info, because its settings differed from the configuration");
        }
        Err(error) => {
            warn!(error = %with_causes(&error), "cannot write nix-cache-info; clients need it to read the store directly");
        }
    }
}

/// Puts the upstreams behind the cache.
#[cfg(feature = "upstream")]
fn backend(cache: &Arc<Cache>, config: &Config) -> anyhow::Result<Arc<Backend>> {
    for upstream in &config.upstreams.list {
        info!("upstream {upstream}");
    }
    let upstreams = crate::mirror::Upstreams::new(&config.upstreams, cache.metrics())?;
    Ok(Arc::new(Backend::new(Arc::clone(cache), upstreams)))
}

#[cfg(not(feature = "upstream"))]
fn backend(cache: &Arc<Cache>, _: &Config) -> anyhow::Result<Arc<Backend>> {
    Ok(Arc::clone(cache))
}

/// Makes a directory absolute, for the log.
fn absolute(location: Location) -> Location {
    match location {
        Location::Directory(path) => {
            Location::Directory(std::path::absolute(&path).unwrap_or(path))
        }
        #[cfg(feature = "s3")]
        bucket => bucket,
    }
}

fn log_write_access(write: &Requirement) {
    match write {
        Requirement::Local => warn!(
            "anyone on this machine may upload, because no users are configured; set \
             NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE to require a password"
        ),
        Requirement::Anyone => warn!("anyone may upload, because NIX_STORED_ANONYMOUS_WRITE=1"),
        Requirement::User(_) | Requirement::Certificate => {}
        Requirement::Nobody => info!(
            "uploads are refused; set NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE to \
             allow them"
        ),
    }
}

/// Logs the addresses, and the commands that a new user runs next.
fn log_usage(urls: &[String]) {
    for url in urls {
        info!("listening on {url}");
    }
    // Nix has no URL for HTTP over a Unix socket.
    let Some(url) = urls.iter().find(|url| url.starts_with("http")) else {
        return;
    };
    info!("upload a build:  nix copy --to {url} ./result");
    info!(
        "substitute:  nix build --extra-substituters {url} …  (or in nix.conf: extra-substituters = {url})"
    );
}
