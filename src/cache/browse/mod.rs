//! The data for the web pages: an index of all names, the facts about one path, and its files.
//!
//! Scanning a cache with many paths takes seconds and much memory, so no request waits for a scan.
//! The first request starts building the index; requests in the meantime get the progress; later
//! requests get the last complete index while the next one is built. Nothing here counts as use,
//! and nothing is requested from upstreams.

mod files;
mod index;
mod listing;
mod look;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, watch};
use tracing::warn;

pub use files::{File, FileKind, Files, NoFiles};
pub use index::{DAYS, Days, Index, Row};
pub use look::{Look, LookError};
pub use work::TooManyPages;

use super::Cache;
use super::gc::InventoryError;
use crate::config::{Admission, Retention};
use crate::nix::{CacheInfo, ObjectKind};
use crate::store::background;

/// The time for which a request waits for an index that is being built.
const PATIENCE: Duration = Duration::from_millis(500);

/// The pause before the index is built again, as a multiple of the time that building it took: so
/// it costs at most a few per cent of one processor, and a small cache is always up to date.
const REST: u32 = 30;

/// But not more often than this.
const SHORTEST_REST: Duration = Duration::from_secs(1);

/// The pause after a failure.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// How many NARs are read for their files at a time.
const READERS: usize = 2;

/// The state of the web pages.
pub(super) struct Browse {
    state: watch::Sender<State>,
    /// The number of objects that were found so far.
    found: AtomicU64,
    limits: Option<Retention>,
    readers: Arc<Semaphore>,
    workers: Arc<Semaphore>,
}

#[derive(Clone)]
struct State {
    index: Option<Arc<Index>>,
    /// Whether it is being made.
    making: bool,
    /// Whether it could not be made the last time.
    failed: bool,
    /// When it may be made again.
    due: Instant,
}

/// The index, or the progress of building it.
#[derive(Clone)]
pub struct Overview {
    /// The last one that was made, if there is one.
    pub index: Option<Arc<Index>>,
    /// How many objects were found so far for a first one or a newer one, if one is being made.
    pub found: Option<u64>,
    /// Whether building the last index failed. The log has the reason.
    pub failed: bool,
}

/// The properties and limits of a cache.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The contents of `nix-cache-info`.
    pub info: &'a CacheInfo,
    /// What an upload must be.
    pub admission: &'a Admission,
    /// The limits of its collections, if any.
    pub limits: Option<&'a Retention>,
}

/// The narinfo requests since the start of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Those that it had.
    pub hits: u64,
    /// Those that it had not.
    pub misses: u64,
}

/// The status of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Where it is.
    pub url: String,
    /// The time for which its circuit stays open.
    pub left_alone: Option<Duration>,
    /// The keys by which it signs.
    pub keys: Vec<String>,
}

impl Default for Browse {
    fn default() -> Self {
        let state = State { index: None, making: false, failed: false, due: Instant::now() };
        Self {
            state: watch::Sender::new(state),
            found: AtomicU64::new(0),
            limits: None,
            readers: Arc::new(Semaphore::new(READERS)),
            workers: Arc::new(Semaphore::new(work::WORKERS)),
        }
    }
}

impl Cache {
    /// With limits for its pages to show.
    #[must_use]
    pub fn with_limits_shown(mut self, limits: Retention) -> Self {
        self.set_up().browse.limits = Some(limits);
        self
    }

    /// Its description of itself.
    pub fn about(&self) -> About<'_> {
        let limits = self.browse.limits.as_ref();
        About { info: &self.info, admission: &self.admission, limits }
    }

    /// The number of requested narinfos.
    pub fn served(&self) -> Served {
        let traffic = &self.metrics.traffic;
        Served {
            hits: traffic.hits(ObjectKind::NarInfo),
            misses: traffic.misses(ObjectKind::NarInfo),
        }
    }

    /// The caches behind this one, in the order of trust.
    #[cfg(feature = "upstream")]
    pub fn behind(&self) -> Vec<UpstreamStatus> {
        self.upstreams.as_ref().map(super::upstream::Upstreams::states).unwrap_or_default()
    }

    /// This build has no upstreams.
    #[cfg(not(feature = "upstream"))]
    pub fn behind(&self) -> Vec<UpstreamStatus> {
        Vec::new()
    }

    /// The index, as far as it is there. If it is old, a newer one is waited for, but not long.
    pub async fn overview(&self) -> Overview {
        let mut state = self.browse.state.subscribe();
        let begins = self.browse.state.send_if_modified(|state| {
            let begins = !state.making && Instant::now() >= state.due;
            state.making |= begins;
            begins
        });
        if begins {
            tokio::spawn(self.clone().make_index());
        }
        // After the timeout, the last state is used.
        let _ = tokio::time::timeout(PATIENCE, state.wait_for(|state| !state.making)).await;
        let State { index, making, failed, .. } = state.borrow().clone();
        let found = making.then(|| self.browse.found.load(Ordering::Relaxed));
        Overview { index, found, failed }
    }

    async fn make_index(self) {
        let begun = Instant::now();
        let made = self.index().await;
        if let Err(error) = &made {
            let error = error as &dyn std::error::Error;
            warn!(error, "cannot build the index of the web pages");
        }
        self.browse.state.send_modify(|state| {
            let rest = (begun.elapsed() * REST).max(SHORTEST_REST);
            state.making = false;
            state.failed = made.is_err();
            state.due = Instant::now() + if state.failed { REST_AFTER_FAILURE } else { rest };
            if let Ok(index) = made {
                state.index = Some(Arc::new(index));
            }
        });
    }

    async fn index(&self) -> Result<Index, InventoryError> {
        self.browse.found.store(0, Ordering::Relaxed);
        let progress = |found| self.browse.found.store(found, Ordering::Relaxed);
        let inventory = self.inventory(progress).await?;
        let index = move || Index::new(&inventory, SystemTime::now());
        Ok(background::run("index", index).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::FsStore;

    /// The state when no index is being built.
    async fn settled(cache: &Cache) -> Overview {
        loop {
            let told = cache.overview().await;
            if told.found.is_none() {
                return told;
            }
        }
    }

    #[tokio::test]
    async fn an_index_that_cannot_be_made_is_told_and_tried_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::from_vars([]).unwrap();
        let store = FsStore::open(dir.path(), 0).unwrap();
        let cache = Cache::new(Arc::new(store.into()), config.cache_info, config.admission);
        // A narinfo for another store dir: nothing could be said of this cache.
        let name = dir.path().join("8ha1dhmx807czjczmwy078s4r9s254il.narinfo");
        let text = format!("StorePath: /gnu/store/x\nURL: nar/{:0>52}.nar.xz\n", 1);
        std::fs::write(&name, text).unwrap();
        let told = settled(&cache).await;
        assert!(told.failed && told.index.is_none());
        std::fs::remove_file(name).unwrap();
        assert!(settled(&cache).await.failed, "it is not tried at once");
        cache.browse.state.send_modify(|state| state.due = Instant::now());
        let told = settled(&cache).await;
        assert!(!told.failed && told.index.is_some());
    }
}
