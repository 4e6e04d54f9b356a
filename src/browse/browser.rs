//! The index of the pages, and the limits of what pages may cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, watch};
use tracing::warn;

use super::details::{DetailsError, PathDetails};
use super::file_collector::{FileList, ListFilesError};
use super::files::FileLister;
use super::index::Index;
use super::workers::{TooManyPages, Workers};
use crate::cache::Cache;
use crate::config::{Admission, Retention};
use crate::inventory::InventoryError;
use crate::logging::with_causes;
use crate::nix::{CacheInfo, NarInfo, ObjectKind, StorePathHash};
use crate::store::background;

/// The time for which a request waits for an index that is being built.
const INDEX_TIMEOUT: Duration = Duration::from_millis(500);

/// The pause before the index is built again, as a multiple of the time that building it took. So
/// the index costs at most 3 % of one processor, and that of a small cache is always up to date.
const REBUILD_PAUSE_FACTOR: u32 = 30;

/// The minimum pause before the index is built again.
const MIN_REBUILD_PAUSE: Duration = Duration::from_secs(1);

/// The pause after building the index has failed.
const FAILED_REBUILD_PAUSE: Duration = Duration::from_secs(30);

/// The maximum number of NARs that are read at a time to list their files.
const NAR_READERS: usize = 2;

#[derive(Clone)]
struct IndexState {
    index: Option<Arc<Index>>,
    /// Whether an index is being built.
    is_building: bool,
    /// Whether building the last index failed.
    failed: bool,
    /// The time from which the index may be built again.
    due: Instant,
}

/// The index, or the progress of building it.
#[derive(Clone)]
pub struct Overview {
    /// The last index that was built, if any.
    pub index: Option<Arc<Index>>,
    /// The number of objects found so far, if an index is being built.
    pub found: Option<u64>,
    /// Whether building the last index failed. The log has the reason.
    pub failed: bool,
}

/// The properties and limits of a cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheProperties<'a> {
    /// The contents of `nix-cache-info`.
    pub info: &'a CacheInfo,
    /// The requirements for uploads.
    pub admission: &'a Admission,
    /// The limits of collections, if any.
    pub limits: Option<&'a Retention>,
}

/// The narinfo requests since the start of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarInfoRequests {
    /// The number of requests for narinfos in the cache.
    pub hits: u64,
    /// The number of requests for absent narinfos.
    pub misses: u64,
}

/// The data behind the web pages.
pub struct Browser {
    cache: Arc<Cache>,
    /// The limits of collections, if any.
    limits: Option<Retention>,
    state: watch::Sender<IndexState>,
    /// The number of objects that were found so far.
    found: AtomicU64,
    nar_readers: Arc<Semaphore>,
    workers: Workers,
}

impl Browser {
    /// Creates the data behind the pages of a cache. The pages show `limits`.
    pub fn new(cache: Arc<Cache>, limits: Option<Retention>) -> Self {
        let state =
            IndexState { index: None, is_building: false, failed: false, due: Instant::now() };
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
    pub fn about(&self) -> CacheProperties<'_> {
        let (info, admission) = (self.cache.info(), self.cache.admission());
        CacheProperties { info, admission, limits: self.limits.as_ref() }
    }

    /// The narinfo requests since the start of the daemon.
    pub fn narinfo_requests(&self) -> NarInfoRequests {
        let traffic = &self.cache.metrics().traffic;
        NarInfoRequests {
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
    pub async fn files_of(&self, info: &NarInfo) -> Result<FileList, ListFilesError> {
        let Self { cache, workers, nar_readers, .. } = self;
        FileLister { cache, workers, nar_readers }.files_of(info).await
    }

    /// Returns the last index. If it is old, a new one is built, and waited for at most 500 ms.
    pub async fn overview(self: &Arc<Self>) -> Overview {
        let mut state = self.state.subscribe();
        let starts = self.state.send_if_modified(|state| {
            let starts = !state.is_building && Instant::now() >= state.due;
            state.is_building |= starts;
            starts
        });
        if starts {
            tokio::spawn(Arc::clone(self).build_index());
        }
        // After the timeout, the last state is used.
        let _ =
            tokio::time::timeout(INDEX_TIMEOUT, state.wait_for(|state| !state.is_building)).await;
        let IndexState { index, is_building, failed, .. } = state.borrow().clone();
        let found = is_building.then(|| self.found.load(Ordering::Relaxed));
        Overview { index, found, failed }
    }

    async fn build_index(self: Arc<Self>) {
        let started = Instant::now();
        let built = self.read_index().await;
        if let Err(error) = &built {
            warn!(error = %with_causes(error), "cannot build the index of the web pages");
        }
        self.state.send_modify(|state| {
            let pause = (started.elapsed() * REBUILD_PAUSE_FACTOR).max(MIN_REBUILD_PAUSE);
            state.is_building = false;
            state.failed = built.is_err();
            state.due = Instant::now() + if state.failed { FAILED_REBUILD_PAUSE } else { pause };
            if let Ok(index) = built {
                state.index = Some(Arc::new(index));
            }
        });
    }

    async fn read_index(&self) -> Result<Index, InventoryError> {
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
            let overview = browser.overview().await;
            if overview.found.is_none() {
                return overview;
            }
        }
    }

    #[tokio::test]
    async fn a_failed_index_build_is_reported_and_repeated_after_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::from_vars([]).unwrap();
        let store = FsStore::open(dir.path(), 0).unwrap();
        let cache = Cache::new(Arc::new(store.into()), config.cache_info, config.admission);
        let browser = Arc::new(Browser::new(Arc::new(cache), None));
        // A narinfo for another store directory, which makes the inventory fail.
        let name = dir.path().join("8ha1dhmx807czjczmwy078s4r9s254il.narinfo");
        let text = format!("StorePath: /gnu/store/x\nURL: nar/{:0>52}.nar.xz\n", 1);
        std::fs::write(&name, text).unwrap();
        let overview = settled(&browser).await;
        assert!(overview.failed && overview.index.is_none());
        std::fs::remove_file(name).unwrap();
        assert!(
            settled(&browser).await.failed,
            "the index is not built again before the pause is over"
        );
        browser.state.send_modify(|state| state.due = Instant::now());
        let overview = settled(&browser).await;
        assert!(!overview.failed && overview.index.is_some());
    }
}
