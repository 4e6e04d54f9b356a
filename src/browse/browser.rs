//! The index of the pages, and the limits of what pages may cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, watch};
use tracing::warn;

use super::details::{DetailsError, PathDetails};
use super::file_collector::{Files, NoFiles};
use super::files::FileLister;
use super::index::Index;
use super::workers::{TooManyPages, Workers};
use crate::cache::Cache;
use crate::config::{Admission, Retention};
use crate::inventory::InventoryError;
use crate::nix::{CacheInfo, NarInfo, ObjectKind, StorePathHash};
use crate::store::background;

/// The time for which a request waits for an index that is being built.
const INDEX_TIMEOUT: Duration = Duration::from_millis(500);

/// The pause before the index is built again, as a multiple of the time that building it took: so
/// it costs at most a few per cent of one processor, and a small cache is always up to date.
const REST: u32 = 30;

/// But not more often than this.
const SHORTEST_REST: Duration = Duration::from_secs(1);

/// The pause after a failure.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// How many NARs are read for their files at a time.
const NAR_READERS: usize = 2;

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

/// The data behind the web pages.
pub struct Browser {
    cache: Arc<Cache>,
    /// The limits of collections, if any.
    limits: Option<Retention>,
    state: watch::Sender<State>,
    /// The number of objects that were found so far.
    found: AtomicU64,
    nar_readers: Arc<Semaphore>,
    workers: Workers,
}

impl Browser {
    /// Creates the data behind the pages of a cache. `limits` are shown on the pages.
    pub fn new(cache: Arc<Cache>, limits: Option<Retention>) -> Self {
        let state = State { index: None, making: false, failed: false, due: Instant::now() };
        Self {
            cache,
            limits,
            state: watch::Sender::new(state),
            found: AtomicU64::new(0),
            nar_readers: Arc::new(Semaphore::new(NAR_READERS)),
            workers: Workers::default(),
        }
    }

    /// The properties and limits of the cache.
    pub fn about(&self) -> About<'_> {
        let (info, admission) = (self.cache.info(), self.cache.admission());
        About { info, admission, limits: self.limits.as_ref() }
    }

    /// The narinfo requests since the start of the daemon.
    pub fn served(&self) -> Served {
        let traffic = &self.cache.metrics().traffic;
        Served {
            hits: traffic.hits(ObjectKind::NarInfo),
            misses: traffic.misses(ObjectKind::NarInfo),
        }
    }

    /// The free space in bytes, or `None` if it is unknown.
    pub fn free_space(&self) -> Option<u64> {
        self.cache.store().free_space()
    }

    /// Renders a page on one of the workers.
    pub async fn render<T: Send + 'static>(
        &self,
        page: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TooManyPages> {
        self.workers.run(page).await
    }

    /// Returns the details of the path with this hash part, or `None` if the path is absent or its
    /// narinfo cannot be read.
    pub async fn details(&self, hash: StorePathHash) -> Result<Option<PathDetails>, DetailsError> {
        PathDetails::read(&self.cache, &self.workers, hash).await
    }

    /// Lists the files of a path. This takes a few seconds at most.
    pub async fn files_of(&self, info: &NarInfo) -> Result<Files, NoFiles> {
        let Self { cache, workers, nar_readers, .. } = self;
        FileLister { cache, workers, nar_readers }.files_of(info).await
    }

    /// Returns the last index. If it is old, a new one is built, and waited for at most 500 ms.
    pub async fn overview(self: &Arc<Self>) -> Overview {
        let mut state = self.state.subscribe();
        let starts = self.state.send_if_modified(|state| {
            let starts = !state.making && Instant::now() >= state.due;
            state.making |= starts;
            starts
        });
        if starts {
            tokio::spawn(Arc::clone(self).make_index());
        }
        // After the timeout, the last state is used.
        let _ = tokio::time::timeout(INDEX_TIMEOUT, state.wait_for(|state| !state.making)).await;
        let State { index, making, failed, .. } = state.borrow().clone();
        let found = making.then(|| self.found.load(Ordering::Relaxed));
        Overview { index, found, failed }
    }

    async fn make_index(self: Arc<Self>) {
        let started = Instant::now();
        let made = self.index().await;
        if let Err(error) = &made {
            let error = error as &dyn std::error::Error;
            warn!(error, "cannot build the index of the web pages");
        }
        self.state.send_modify(|state| {
            let rest = (started.elapsed() * REST).max(SHORTEST_REST);
            state.making = false;
            state.failed = made.is_err();
            state.due = Instant::now() + if state.failed { REST_AFTER_FAILURE } else { rest };
            if let Ok(index) = made {
                state.index = Some(Arc::new(index));
            }
        });
    }

    async fn index(&self) -> Result<Index, InventoryError> {
        self.found.store(0, Ordering::Relaxed);
        let progress = |found| self.found.store(found, Ordering::Relaxed);
        let inventory = self.cache.inventory(progress).await?;
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
    async fn settled(browser: &Arc<Browser>) -> Overview {
        loop {
            let told = browser.overview().await;
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
        let browser = Arc::new(Browser::new(Arc::new(cache), None));
        // A narinfo for another store dir: nothing could be said of this cache.
        let name = dir.path().join("8ha1dhmx807czjczmwy078s4r9s254il.narinfo");
        let text = format!("StorePath: /gnu/store/x\nURL: nar/{:0>52}.nar.xz\n", 1);
        std::fs::write(&name, text).unwrap();
        let told = settled(&browser).await;
        assert!(told.failed && told.index.is_none());
        std::fs::remove_file(name).unwrap();
        assert!(settled(&browser).await.failed, "it is not tried at once");
        browser.state.send_modify(|state| state.due = Instant::now());
        let told = settled(&browser).await;
        assert!(!told.failed && told.index.is_some());
    }
}
