//! The binary cache: verification, retention and everything else that the guarantees promise. HTTP
//! and the commands use only [`Cache`], and nothing below it.

mod upload_receipt;
mod audit;
#[cfg(feature = "pages")]
pub mod browse;
mod decode_budget;
mod elsewhere;
mod error;
mod feed;
pub mod gc;
mod health;
mod narinfo_cache;
mod staging_reader;
mod ingest;
mod inspect_reader;
pub mod migrate;
mod nar;
mod narinfo;
mod progress;
mod remove;
mod signatures;
mod stage;
mod stats;
mod unpack;
#[cfg(feature = "upstream")]
pub mod upstream;
mod uses;
pub mod verify;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::Stream;

pub use audit::Actor;
pub use error::{BodyError, GetError, PutError};
pub use health::Health;
pub use progress::Progress;
pub use remove::{Referrers, Refusal, plan_removal};
pub use stats::{Holding, Stats};
pub use unpack::UnpackError;
pub use upload_receipt::UploadReceipt;

use crate::config::Admission;
use crate::metrics::Metrics;
use crate::nix::cache_path::NarName;
use crate::nix::{CacheInfo, CachePath, Compression, Sha256Hash, StorePathHash};
use crate::store::{Content, KeyedLocks, Metadata, Object, Store, StoreError, Stored};
use decode_budget::DecodeBudget;
use feed::{Feed, TransferLimit, Turn};
use narinfo_cache::{Found, NarInfoCache};

/// A binary cache. A clone is the same cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

/// The shared state of all clones of a cache.
pub struct Inner {
    store: Arc<Store>,
    info: CacheInfo,
    /// `nix-cache-info` as it is served, made once.
    info_object: (Metadata, Bytes),
    admission: Admission,
    /// The time after a use or upload during which an object is never collected.
    grace: Duration,
    hot: NarInfoCache,
    metrics: Arc<Metrics>,
    /// The actor of removals.
    agent: Actor,
    /// How the store was a moment ago.
    health: health::Watch,
    /// The facts about NARs whose narinfo may be uploaded soon.
    facts: quick_cache::sync::Cache<NarName, nar::KnownNarFacts>,
    /// Limits concurrent large uploads that flow.
    uploads: TransferLimit,
    /// The memory budget of all decoders.
    decoders: DecodeBudget,
    /// Limits what uploads of large narinfos have in memory.
    large_narinfos: Arc<ingest::LargeNarInfos>,
    /// Locks for changes of narinfos, by name.
    turns: KeyedLocks,
    /// Whether clients are sent to where the store has its objects for NARs.
    redirect: bool,
    /// The upstreams.
    #[cfg(feature = "upstream")]
    upstreams: Option<upstream::Upstreams>,
    /// What pages show.
    #[cfg(feature = "pages")]
    browse: browse::Browse,
}

impl std::ops::Deref for Cache {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The maximum number of concurrent large uploads: each has up to three batches of 256 KiB in
/// memory. More uploads wait for their `100 Continue`. Slow uploads do not count.
const UPLOADS: usize = 256;

/// The number of slow uploads above which they count, too.
const SLOW_UPLOADS: usize = 4096;

/// How many NARs are remembered. One whose facts were dropped is read again.
const FACTS: usize = 16 * 1024;

/// What there is to know about an object that was made just now, and is in memory only.
fn metadata_of(text: &[u8]) -> Metadata {
    let now = SystemTime::now();
    let etag = format!("\"{}\"", Sha256Hash::of(text).to_nix32()).into();
    Metadata { size: text.len() as u64, modified: now, used: now, etag }
}

impl Cache {
    /// Creates a cache over `store` with the properties `info`.
    pub fn new(store: Arc<Store>, info: CacheInfo, admission: Admission) -> Self {
        let text = Bytes::from(info.to_string());
        Self(Arc::new(Inner {
            store,
            info,
            info_object: (metadata_of(&text), text),
            admission,
            grace: gc::GRACE,
            hot: NarInfoCache::new(),
            metrics: Metrics::new(),
            agent: Actor::collector(),
            health: health::Watch::default(),
            facts: quick_cache::sync::Cache::new(FACTS),
            uploads: TransferLimit::new(UPLOADS, SLOW_UPLOADS),
            decoders: DecodeBudget::default(),
            large_narinfos: Arc::default(),
            turns: KeyedLocks::default(),
            redirect: false,
            #[cfg(feature = "upstream")]
            upstreams: None,
            #[cfg(feature = "pages")]
            browse: browse::Browse::default(),
        }))
    }

    /// With another time of grace than [`gc::GRACE`]. Uses are then recorded more often, too.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.set_up().grace = grace;
        self
    }

    /// Whether clients are sent to the store itself for NARs, where it has a place for that.
    #[cfg(feature = "s3")]
    #[must_use]
    pub fn with_redirect(mut self, redirect: bool) -> Self {
        self.set_up().redirect = redirect;
        self
    }

    /// Sets the actor of removals, if it is not the daemon.
    #[must_use]
    pub fn with_agent(mut self, agent: Actor) -> Self {
        self.set_up().agent = agent;
        self
    }

    /// Whether objects of other caches are kept here.
    #[cfg(feature = "upstream")]
    pub fn mirrors(&self) -> bool {
        self.upstreams.as_ref().is_some_and(upstream::Upstreams::are_kept)
    }

    /// Whether objects of other caches are kept here: this build knows of none.
    #[cfg(not(feature = "upstream"))]
    pub fn mirrors(&self) -> bool {
        false
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// With other caches behind it.
    #[cfg(feature = "upstream")]
    #[must_use]
    pub fn with_upstreams(mut self, upstreams: upstream::Upstreams) -> Self {
        self.set_up().upstreams = Some(upstreams);
        self
    }

    /// Uses the credentials in `config`, which has the same upstreams, from now on.
    #[cfg(feature = "upstream")]
    pub fn log_in_to_upstreams(&self, config: &crate::config::Upstreams) {
        if let Some(upstreams) = &self.upstreams {
            upstreams.log_in(config);
        }
    }

    fn set_up(&mut self) -> &mut Inner {
        Arc::get_mut(&mut self.0).expect("a cache is set up before it is shared")
    }

    /// Returns the metadata of an object, or `None` if the object is absent.
    pub async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, GetError> {
        match path {
            CachePath::CacheInfo => Ok(Some(self.info_object.0.clone())),
            CachePath::NarInfo(_) | CachePath::DebugInfo(_) => {
                Ok(self.get(path).await?.map(|object| object.metadata))
            }
            _ => match self.store.head(path).await? {
                Some(metadata) if self.touch_soon(path, metadata.used).await? => {
                    self.metrics.traffic.hit(path.kind());
                    Ok(Some(metadata))
                }
                _ => {
                    self.metrics.traffic.missed(path.kind());
                    self.head_elsewhere(path).await
                }
            },
        }
    }

    /// Returns a presigned URL for a client, or `None` if the daemon serves the object itself.
    pub async fn link(&self, path: &CachePath) -> Result<Option<String>, GetError> {
        if !self.redirect || !matches!(path, CachePath::Nar(_)) {
            return Ok(None);
        }
        match self.store.head(path).await? {
            Some(metadata) if self.touch_soon(path, metadata.used).await? => {
                let link = self.store.presigned_url(path).await?;
                if link.is_some() {
                    self.metrics.traffic.hit(path.kind());
                }
                Ok(link)
            }
            _ => Ok(None),
        }
    }

    /// Writes `nix-cache-info` if it is missing or has other values, so that Nix can read the store
    /// without the daemon. Returns `None` if it was right.
    pub async fn keep_info(&self) -> Result<Option<Stored>, StoreError> {
        self.store.ensure_lines(&CachePath::CacheInfo, self.info_object.1.clone()).await
    }

    /// An object; none if it is absent.
    pub async fn get(&self, path: &CachePath) -> Result<Option<Object>, GetError> {
        match path {
            CachePath::CacheInfo => {
                let (metadata, text) = self.info_object.clone();
                Ok(Some(Object { metadata, content: Content::Bytes(text) }))
            }
            CachePath::NarInfo(hash) => self.get_narinfo(path, hash).await,
            CachePath::DebugInfo(_) => {
                let found = match self.store.get(path).await? {
                    Some(object) => {
                        self.metrics.traffic.hit(path.kind());
                        Some(object)
                    }
                    None => {
                        self.metrics.traffic.missed(path.kind());
                        self.get_elsewhere(path).await?
                    }
                };
                let Some(object) = found else {
                    return Ok(None);
                };
                let there = self.debug_info_has_its_nar(&object).await?
                    && self.touch_soon(path, object.metadata.used).await?;
                Ok(there.then_some(object))
            }
            _ => match self.store.get(path).await? {
                Some(object) if self.touch_soon(path, object.metadata.used).await? => {
                    self.metrics.traffic.hit(path.kind());
                    Ok(Some(object))
                }
                _ => {
                    self.metrics.traffic.missed(path.kind());
                    self.get_elsewhere(path).await
                }
            },
        }
    }

    /// The content of an object that was found before, if it is still the same; this is no other
    /// use of it.
    pub async fn get_again(&self, path: &CachePath, etag: &Bytes) -> io::Result<Content> {
        match self.store.get(path).await.map_err(io::Error::other)? {
            Some(object) if object.metadata.etag == etag => Ok(object.content),
            Some(_) => Err(io::Error::other("the object was replaced during the response")),
            None => Err(io::Error::other("the object was removed during the response")),
        }
    }

    async fn get_narinfo(
        &self,
        path: &CachePath,
        hash: &StorePathHash,
    ) -> Result<Option<Object>, GetError> {
        if let Some(object) = self.find_narinfo(path, hash).await? {
            if self.touch_soon(path, object.metadata.used).await? {
                self.metrics.traffic.hit(path.kind());
                return Ok(Some(object));
            }
            self.hot.forget(hash);
        }
        self.metrics.traffic.missed(path.kind());
        self.get_elsewhere(path).await
    }

    async fn find_narinfo(
        &self,
        path: &CachePath,
        hash: &StorePathHash,
    ) -> Result<Option<Object>, GetError> {
        match self.hot.get(hash) {
            Some(Found::Fresh(object)) => return Ok(Some(object)),
            Some(Found::Stale(etag)) => {
                if let Some(now) = self.store.head(path).await?
                    && now.etag == etag
                    && let Some(object) = self.hot.renew(hash, now.used)
                {
                    return Ok(Some(object));
                }
                self.hot.forget(hash);
            }
            None => {}
        }
        let read_epoch = self.hot.read_epoch(hash);
        let object = self.store.get(path).await?.filter(narinfo::has_servable_nar);
        if let Some(object) = &object {
            self.hot.insert(*hash, object, read_epoch);
        }
        Ok(object)
    }

    /// Stores an uploaded object. `declared` is the announced length, `encoding` the encoding that
    /// is decoded before storing. An upload that can be refused without its body is refused before
    /// `body` is polled for the first time.
    pub async fn put(
        &self,
        path: &CachePath,
        encoding: Compression,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    ) -> Result<UploadReceipt, PutError> {
        let limit = self.admission.max_upload_size.unwrap_or(u64::MAX);
        if declared.is_some_and(|length| length > limit) {
            return Err(PutError::TooLarge { limit });
        }
        let small = declared.is_some_and(|length| length <= ingest::SMALL);
        let turn = if small { Turn::unlimited() } else { self.uploads.take().await };
        let feed = Feed::new(body, turn);
        match path {
            CachePath::CacheInfo => self.put_cache_info(declared, feed).await,
            CachePath::NarInfo(hash) => self.put_narinfo(*hash, encoding, declared, feed).await,
            // The name of a NAR is the hash of its stored bytes, so there is nothing to decode.
            CachePath::Nar(_) if encoding != Compression::None => {
                Err(PutError::NoDecoder(encoding))
            }
            CachePath::Nar(name) => self.put_nar(*name, declared, feed).await,
            _ => {
                let (stored, size) =
                    ingest::side_file(self, path, encoding, declared, limit, feed).await?;
                Ok(UploadReceipt::plain(stored, size))
            }
        }
    }

    /// Stores an object that is whole in memory, and counts it.
    async fn store_whole(&self, path: &CachePath, bytes: Bytes) -> Result<Stored, StoreError> {
        let (begun, size) = (Instant::now(), bytes.len() as u64);
        let stored = self.store.put(path, bytes).await?;
        self.metrics.committed(begun);
        self.count(path, stored, size);
        Ok(stored)
    }

    /// Does the same in place of the object with the entity tag `before`, or of an absent object.
    /// Returns false if there is another object by now.
    async fn replace_whole(
        &self,
        path: &CachePath,
        bytes: Bytes,
        before: Option<&Bytes>,
    ) -> Result<bool, StoreError> {
        let (begun, size) = (Instant::now(), bytes.len() as u64);
        let Some(stored) = self.store.replace(path, bytes, before).await? else {
            return Ok(false);
        };
        self.metrics.committed(begun);
        self.count(path, stored, size);
        Ok(true)
    }

    /// Records all pending uses, before the process ends.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.store.flush().await
    }

    /// Updates the size of the store, if the object is new.
    fn count(&self, path: &CachePath, stored: Stored, size: u64) {
        if stored == Stored::Created {
            let paths = matches!(path, CachePath::NarInfo(_)).into();
            self.metrics.store.grew(size, paths);
        }
    }

    /// Handles the upload of `nix-cache-info` by a client that takes the cache for a new one. Its
    /// values for the priority and the like are guesses and ignored; the store directory must be
    /// right.
    async fn put_cache_info(
        &self,
        declared: Option<u64>,
        feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<UploadReceipt, PutError> {
        let path = CachePath::CacheInfo;
        let limit = ingest::CACHE_INFO_LIMIT;
        let text = ingest::collect(&self.store, &path, declared, limit, feed).await?;
        let text = text.into_bytes(&path).await?;
        let size = text.len() as u64;
        let text = String::from_utf8_lossy(&text);
        match CacheInfo::store_dir_of(&text) {
            Some(dir) if dir == self.info.store_dir.as_str() => {
                Ok(UploadReceipt::plain(Stored::Replaced, size))
            }
            theirs => Err(PutError::StoreDir {
                ours: self.info.store_dir.clone(),
                theirs: theirs.map(str::to_owned),
            }),
        }
    }

    /// Whether the NAR that a `debuginfo` object links to is still there. Nix does not send a new
    /// link while the old one is found.
    async fn debug_info_has_its_nar(&self, object: &Object) -> Result<bool, GetError> {
        #[derive(serde::Deserialize)]
        struct Link {
            archive: String,
        }
        let Content::Bytes(text) = &object.content else {
            return Ok(true);
        };
        let archive = serde_json::from_slice(text)
            .ok()
            .and_then(|link: Link| link.archive.strip_prefix("../")?.parse().ok());
        match archive {
            Some(nar @ CachePath::Nar(_)) => Ok(self.store.head(&nar).await?.is_some()
                || self.head_elsewhere(&nar).await?.is_some()),
            // Not the link that Nix writes: then it is not ours to judge.
            _ => Ok(true),
        }
    }
}
