//! The decorator: objects that the cache does not have are requested from the upstreams.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use super::error::GetError;
use super::fetch::NarFetcher;
use super::provisional::ProvisionalName;
use super::side_file::SideFileFetcher;
use super::upstreams::{UpstreamStatus, Upstreams};
use crate::cache::{Cache, StoreNarInfo, UploadReceipt, linked_nar};
use crate::config;
use crate::ingest::{BodyError, PutError};
use crate::nix::{CachePath, Compression, StorePathHash};
use crate::store::{Content, Metadata, Object};

/// A cache with upstreams. It has the operations of [`Cache`], and requests objects that the cache
/// does not have from the upstreams. Futures of upstreams are boxed: they are large, and requests
/// that need no upstream would have their size.
pub struct Mirror {
    cache: Arc<Cache>,
    upstreams: Arc<Upstreams>,
    nars: NarFetcher,
}

impl Mirror {
    /// Creates a cache with these upstreams. Without upstreams it behaves like the cache alone.
    pub fn new(cache: Arc<Cache>, upstreams: Upstreams) -> Self {
        let upstreams = Arc::new(upstreams);
        let nars = NarFetcher { cache: Arc::clone(&cache), upstreams: Arc::clone(&upstreams) };
        Self { cache, upstreams, nars }
    }

    /// Uses the credentials in `config`, which has the same upstreams, from now on.
    pub fn set_logins(&self, config: &config::Upstreams) {
        self.upstreams.set_logins(config);
    }

    /// The status of each upstream, in the order of trust.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.upstreams.statuses()
    }

    /// Whether reading an object can store it in this cache.
    pub fn stores_objects(&self) -> bool {
        self.upstreams.stores_any()
    }

    /// Returns the metadata of an object, or `None` if the object is absent.
    pub async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, GetError> {
        if let CachePath::NarInfo(_) | CachePath::DebugInfo(_) = path {
            return Ok(self.get(path).await?.map(|object| object.metadata));
        }
        let canonical = self.canonical(path).await?;
        let path = canonical.as_ref().unwrap_or(path);
        match self.cache.head(path).await? {
            None if !self.upstreams.is_empty() => Box::pin(self.head_upstreams(path)).await,
            found => Ok(found),
        }
    }

    /// Returns an object, or `None` if it is absent.
    pub async fn get(&self, path: &CachePath) -> Result<Option<Object>, GetError> {
        if let CachePath::DebugInfo(_) = path {
            return Box::pin(self.get_debug_info(path)).await;
        }
        let canonical = self.canonical(path).await?;
        let path = canonical.as_ref().unwrap_or(path);
        match self.cache.get(path).await? {
            None if !self.upstreams.is_empty() => Box::pin(self.get_from_upstreams(path)).await,
            found => Ok(found),
        }
    }

    /// Returns the content of an object that [`Self::get`] returned before. Fails if the object has
    /// changed. This does not count as use.
    pub async fn get_again(&self, path: &CachePath, etag: &Bytes) -> io::Result<Content> {
        let canonical = self.canonical(path).await.map_err(io::Error::other)?;
        self.cache.get_again(canonical.as_ref().unwrap_or(path), etag).await
    }

    /// Returns a presigned URL for a client, or `None` if the daemon serves the object itself.
    pub async fn presigned_url(&self, path: &CachePath) -> Result<Option<String>, GetError> {
        if !self.cache.redirects() {
            return Ok(None);
        }
        let canonical = self.canonical(path).await?;
        Ok(self.cache.presigned_url(canonical.as_ref().unwrap_or(path)).await?)
    }

    /// Stores an uploaded object; see [`Cache::put`]. The NAR of a narinfo is fetched if an
    /// upstream has it, and references of a narinfo may be at an upstream.
    pub async fn put(
        &self,
        path: &CachePath,
        encoding: Compression,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    ) -> Result<UploadReceipt, PutError> {
        match path {
            CachePath::NarInfo(hash) if !self.upstreams.is_empty() => {
                self.put_narinfo(*hash, encoding, declared, body).await
            }
            _ => self.cache.put(path, encoding, declared, body).await,
        }
    }

    async fn put_narinfo(
        &self,
        hash: StorePathHash,
        encoding: Compression,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    ) -> Result<UploadReceipt, PutError> {
        let mut upload = self.cache.receive_narinfo(hash, encoding, declared, body).await?;
        let mut was_fetched = false;
        loop {
            match self.cache.store_narinfo(&mut upload).await? {
                StoreNarInfo::Done(receipt) => return Ok(receipt),
                StoreNarInfo::NarMissing(name) => {
                    if was_fetched || !self.nars.fetch_to_end(name).await.unwrap_or(false) {
                        return Err(PutError::NarMissing(CachePath::Nar(name).key()));
                    }
                    was_fetched = true;
                }
                StoreNarInfo::ReferencesMissing(paths) => {
                    for path in paths {
                        if !self.has_upstream(&path.hash()).await {
                            return Err(PutError::Reference(path));
                        }
                    }
                }
            }
        }
    }

    /// Returns the name under which an object is stored, if `path` is the provisional name of a NAR.
    async fn canonical(&self, path: &CachePath) -> Result<Option<CachePath>, GetError> {
        match path {
            CachePath::Nar(name) if ProvisionalName::of(*name).is_some() => {
                Ok(Some(CachePath::Nar(Box::pin(self.nars.canonical(*name)).await?)))
            }
            _ => Ok(None),
        }
    }

    async fn get_from_upstreams(&self, path: &CachePath) -> Result<Option<Object>, GetError> {
        match path {
            CachePath::CacheInfo => Ok(None),
            CachePath::NarInfo(hash) => {
                let (dir, decoders) = (&self.cache.info().store_dir, self.cache.decoders());
                let Some(remote) = self.upstreams.lookup(hash, dir, decoders).await? else {
                    return Ok(None);
                };
                self.nars.store_narinfo_of_stored_nar(&remote).await?;
                Ok(Some(remote.object()))
            }
            CachePath::Nar(name) => self.nars.get(*name).await,
            _ => {
                let fetcher = SideFileFetcher { cache: &self.cache, upstreams: &self.upstreams };
                fetcher.get_side_file(path).await
            }
        }
    }

    async fn head_upstreams(&self, path: &CachePath) -> Result<Option<Metadata>, GetError> {
        match path {
            CachePath::Nar(name) => self.nars.head(*name).await,
            _ => Ok(self.get_from_upstreams(path).await?.map(|object| object.metadata)),
        }
    }

    /// Returns a link to debug symbols, if its NAR is in the cache or at an upstream.
    async fn get_debug_info(&self, path: &CachePath) -> Result<Option<Object>, GetError> {
        let found = match self.cache.get_debug_info(path).await? {
            Some(object) => Some(object),
            None => self.get_from_upstreams(path).await?,
        };
        let Some(object) = found else {
            return Ok(None);
        };
        let has_nar = self.cache.has_linked_nar(&object).await?
            || match linked_nar(&object) {
                Some(nar) => self.head_upstreams(&nar).await?.is_some(),
                None => true,
            };
        let is_present = has_nar && self.cache.touch_soon(path, object.metadata.used).await?;
        Ok(is_present.then_some(object))
    }

    /// Whether an upstream has a path.
    async fn has_upstream(&self, hash: &StorePathHash) -> bool {
        let (dir, decoders) = (&self.cache.info().store_dir, self.cache.decoders());
        matches!(self.upstreams.lookup(hash, dir, decoders).await, Ok(Some(_)))
    }
}
