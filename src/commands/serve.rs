//! `nix-stored serve`: the daemon itself.

use std::sync::Arc;

use anyhow::Context;
use tracing::{info, warn};

use super::opening::open;
use super::owner::serve_as_owner;
use super::reload::Reload;
use super::signals::{hangups, stop_on_signals};
use crate::cache::Cache;
use crate::config::{Config, Location, Requirement};
use crate::net::{Bound, Inherited, Listener, systemd};
use crate::store::Stored;
use crate::{http, logging, net};

/// How long recording what was used may hold up the end.
const FLUSH: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves the cache until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    logging::init(config.log_level, config.log_format);
    // While there is one thread only, and while root may still bind what others may not. Files with
    // passwords and keys have been read.
    let inherited = Inherited::take().context("cannot listen on the sockets that were passed")?;
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
            "got {name}; no new connections, transfers have {} s to finish",
            net::GRACE.as_secs()
        );
    })?;
    let hangups = hangups()?;
    let store = match (open(&config).await, user) {
        (Err(error), Some(user)) => Err(error).with_context(|| {
            format!(
                "user {user} cannot use the cache that is this user's; if root has made files in \
                 it before, run: chown -R {user} {}",
                config.location
            )
        })?,
        (opened, _) => opened?,
    };
    let listener = Listener::on(bound).context("cannot accept connections")?;
    let local = listener.is_local();
    let access = config.users.access(local);
    #[cfg(feature = "tls")]
    let secure = config.tls.as_ref().map(net::Secure::from);
    #[cfg(feature = "tls")]
    let listener = listener.encrypted(secure.clone());

    info!("nix-stored {} serves {}", env!("CARGO_PKG_VERSION"), whole(config.location.clone()));
    say_who_may_upload(&access.write);
    #[cfg(feature = "tls")]
    config.tls.iter().for_each(say_if_out_of_date);
    say_what_to_type(&listener.urls());

    let cache = Cache::new(store, config.cache_info.clone(), config.admission.clone());
    #[cfg(feature = "s3")]
    let cache = cache.with_redirect(config.s3_redirect);
    keep_info(&cache).await;
    #[cfg(feature = "upstream")]
    let cache = with_upstreams(cache, &config.upstreams)?;
    #[cfg(feature = "pages")]
    let cache = cache.with_limits_shown(config.retention);
    let cache = Arc::new(cache);
    let collecting = Arc::clone(&cache).collect_regularly(config.retention, stop.clone());
    let collecting = tokio::spawn(collecting);
    let ending = Arc::clone(&cache);
    let gate = http::Gate::from(access);
    let reload = Reload {
        config,
        local,
        gate: gate.clone(),
        #[cfg(feature = "upstream")]
        cache: (*cache).clone(),
        #[cfg(feature = "tls")]
        secure,
    };
    tokio::spawn(reload.at(hangups));
    tokio::spawn(systemd::keep_alive());
    systemd::ready();
    let drained = net::serve(listener, http::app(cache, gate), stop).await;
    // It ends between two removals.
    collecting.await.context("the collector panicked")?;
    match tokio::time::timeout(FLUSH, ending.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            warn!(error = &error as &dyn std::error::Error, "the last uses were not recorded");
        }
        Err(_) => warn!("the last uses were not recorded in time"),
    }
    match drained.cut_off {
        0 => info!("stopped; every transfer was finished"),
        count => warn!("stopped; {count} connections were cut off after the time of grace"),
    }
    Ok(())
}

/// For those who read the directory or the bucket without the daemon.
async fn keep_info(cache: &Cache) {
    match cache.keep_info().await {
        Ok(None) => {}
        Ok(Some(Stored::Created)) => info!("wrote nix-cache-info"),
        Ok(Some(Stored::Replaced)) => {
            warn!("nix-cache-info had other settings; it has those of the configuration now");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            warn!(error, "cannot write nix-cache-info, which readers without the daemon need");
        }
    }
}

#[cfg(feature = "upstream")]
fn with_upstreams(cache: Cache, config: &crate::config::Upstreams) -> anyhow::Result<Cache> {
    if config.list.is_empty() {
        return Ok(cache);
    }
    for upstream in &config.list {
        info!("what is not here is asked of {upstream}");
    }
    let upstreams = crate::cache::upstream::Upstreams::new(config, cache.metrics())?;
    Ok(cache.with_upstreams(upstreams))
}

/// A directory by its whole name.
fn whole(location: Location) -> Location {
    match location {
        Location::Directory(path) => {
            Location::Directory(std::path::absolute(&path).unwrap_or(path))
        }
        #[cfg(feature = "s3")]
        bucket => bucket,
    }
}

fn say_who_may_upload(write: &Requirement) {
    match write {
        Requirement::Local => warn!(
            "anyone on this machine may upload, because no user is configured; set \
             NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE before others can reach it"
        ),
        Requirement::Anyone => warn!("anyone may upload, because NIX_STORED_ANONYMOUS_WRITE=1"),
        Requirement::User(_) | Requirement::Certificate => {}
        Requirement::Nobody => info!(
            "nobody may upload; set NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE to \
             change that"
        ),
    }
}

/// Clients that check certificates would not come in.
#[cfg(feature = "tls")]
pub(super) fn say_if_out_of_date(tls: &crate::config::Tls) {
    if let Some(state) = tls.out_of_date(std::time::SystemTime::now()) {
        warn!("the certificate in NIX_STORED_TLS_CERT {state}, and clients will not accept it");
    }
}

/// The first lines that a newcomer sees.
fn say_what_to_type(urls: &[String]) {
    for url in urls {
        info!("listening on {url}");
    }
    // Nix cannot type a socket's path.
    let Some(url) = urls.iter().find(|url| url.starts_with("http")) else {
        return;
    };
    info!("put builds in:  nix copy --to {url} ./result");
    info!(
        "take them out:  nix build --extra-substituters {url} …  (or in nix.conf: extra-substituters = {url})"
    );
}
