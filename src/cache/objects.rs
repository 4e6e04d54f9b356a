//! The operations of clients: GET, HEAD and PUT of an object.

use std::io;

use bytes::Bytes;
use futures_util::Stream;

use super::narinfo::has_servable_nar;
use super::narinfo_cache::Found;
use super::receipt::UploadReceipt;
use super::state::Cache;
use crate::ingest::{BodyError, Feed, MEMORY_BODY_LIMIT, PutError, TransferPermit, collect};
use crate::nix::{CacheInfo, CachePath, Compression, StorePathHash};
use crate::store::{Content, Metadata, Object, StoreError, Stored};

/// The maximum size of an uploaded `nix-cache-info`, in bytes.
const CACHE_INFO_LIMIT: u64 = 64 * 1024;

impl Cache {
    /// Returns the metadata of an object, or `None` if the object is absent.
    pub async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, StoreError> {
        match path {
            CachePath::CacheInfo => Ok(Some(self.info_object.0.clone())),
            CachePath::NarInfo(_) | CachePath::DebugInfo(_) => {
                Ok(self.get(path).await?.map(|object| object.metadata))
            }
            _ => {
                let mut found = self.store.head(path).await?;
                if let Some(metadata) = &found
                    && !self.touch_soon(path, metadata.used).await?
                {
                    found = None;
                }
                self.count_request(path, found.is_some());
                Ok(found)
            }
        }
    }

    /// Returns an object, or `None` if it is absent.
    pub async fn get(&self, path: &CachePath) -> Result<Option<Object>, StoreError> {
        match path {
            CachePath::CacheInfo => {
                let (metadata, text) = self.info_object.clone();
                Ok(Some(Object { metadata, content: Content::Bytes(text) }))
            }
            CachePath::NarInfo(hash) => self.get_narinfo(path, hash).await,
            CachePath::DebugInfo(_) => {
                let Some(object) = self.get_debug_info(path).await? else {
                    return Ok(None);
                };
                let there = self.has_linked_nar(&object).await?
                    && self.touch_soon(path, object.metadata.used).await?;
                Ok(there.then_some(object))
            }
            _ => {
                let mut found = self.store.get(path).await?;
                if let Some(object) = &found
                    && !self.touch_soon(path, object.metadata.used).await?
                {
                    found = None;
                }
                self.count_request(path, found.is_some());
                Ok(found)
            }
        }
    }

    /// Returns the content of an object that [`Self::get`] returned before. Fails if the object has
    /// changed. This does not count as use.
    pub async fn get_again(&self, path: &CachePath, etag: &Bytes) -> io::Result<Content> {
        match self.store.get(path).await.map_err(io::Error::other)? {
            Some(object) if object.metadata.etag == etag => Ok(object.content),
            Some(_) => Err(io::Error::other("the object was replaced during the response")),
            None => Err(io::Error::other("the object was removed during the response")),
        }
    }

    /// Returns a presigned URL for a client, or `None` if the daemon serves the object itself.
    pub async fn presigned_url(&self, path: &CachePath) -> Result<Option<String>, StoreError> {
        if !self.redirects || !matches!(path, CachePath::Nar(_)) {
            return Ok(None);
        }
        match self.store.head(path).await? {
            Some(metadata) if self.touch_soon(path, metadata.used).await? => {
                let url = self.store.presigned_url(path).await?;
                if url.is_some() {
                    self.count_request(path, true);
                }
                Ok(url)
            }
            _ => Ok(None),
        }
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
        match path {
            CachePath::NarInfo(hash) => self.put_narinfo(*hash, encoding, declared, body).await,
            CachePath::CacheInfo => {
                let feed = self.feed(declared, body).await?;
                self.put_cache_info(declared, feed).await
            }
            CachePath::Nar(name) => {
                let feed = self.feed(declared, body).await?;
                // The name of a NAR is the hash of its stored bytes, so there is nothing to decode.
                if encoding != Compression::None {
                    return Err(PutError::NoDecoder(encoding));
                }
                self.put_nar(*name, declared, feed).await
            }
            _ => {
                let feed = self.feed(declared, body).await?;
                let limit = self.upload_limit();
                let (stored, size) =
                    self.put_side_file(path, encoding, declared, limit, feed).await?;
                Ok(UploadReceipt::plain(stored, size))
            }
        }
    }

    /// The maximum size of an upload, in bytes.
    pub(super) fn upload_limit(&self) -> u64 {
        self.admission.max_upload_size.unwrap_or(u64::MAX)
    }

    /// Starts to receive a body, when there is room for one more large upload.
    pub(super) async fn feed<S>(&self, declared: Option<u64>, body: S) -> Result<Feed<S>, PutError>
    where
        S: Stream<Item = Result<Bytes, BodyError>> + Unpin,
    {
        let limit = self.upload_limit();
        if declared.is_some_and(|length| length > limit) {
            return Err(PutError::TooLarge { limit });
        }
        let is_small = declared.is_some_and(|length| length <= MEMORY_BODY_LIMIT);
        let permit = if is_small { TransferPermit::unlimited() } else { self.uploads.take().await };
        Ok(Feed::new(body, permit))
    }

    async fn get_narinfo(
        &self,
        path: &CachePath,
        hash: &StorePathHash,
    ) -> Result<Option<Object>, StoreError> {
        let mut found = self.find_narinfo(path, hash).await?;
        if let Some(object) = &found
            && !self.touch_soon(path, object.metadata.used).await?
        {
            self.narinfos.forget(hash);
            found = None;
        }
        self.count_request(path, found.is_some());
        Ok(found)
    }

    /// Returns a narinfo from memory or from the store, without recording a use.
    pub(crate) async fn find_narinfo(
        &self,
        path: &CachePath,
        hash: &StorePathHash,
    ) -> Result<Option<Object>, StoreError> {
        match self.narinfos.get(hash) {
            Some(Found::Fresh(object)) => return Ok(Some(object)),
            Some(Found::Stale(etag)) => {
                if let Some(now) = self.store.head(path).await?
                    && now.etag == etag
                    && let Some(object) = self.narinfos.renew(hash, now.used)
                {
                    return Ok(Some(object));
                }
                self.narinfos.forget(hash);
            }
            None => {}
        }
        let read_epoch = self.narinfos.read_epoch(hash);
        let object = self.store.get(path).await?.filter(has_servable_nar);
        if let Some(object) = &object {
            self.narinfos.insert(*hash, object, read_epoch);
        }
        Ok(object)
    }

    /// Returns a link to debug symbols, whether or not its NAR is there.
    pub(crate) async fn get_debug_info(
        &self,
        path: &CachePath,
    ) -> Result<Option<Object>, StoreError> {
        let found = self.store.get(path).await?;
        self.count_request(path, found.is_some());
        Ok(found)
    }

    /// Whether the NAR that a `debuginfo` object links to is in the store. An object that is not a
    /// link as Nix writes it counts as right.
    pub(crate) async fn has_linked_nar(&self, link: &Object) -> Result<bool, StoreError> {
        match linked_nar(link) {
            Some(nar) => Ok(self.store.head(&nar).await?.is_some()),
            None => Ok(true),
        }
    }

    fn count_request(&self, path: &CachePath, is_hit: bool) {
        match is_hit {
            true => self.metrics.traffic.hit(path.kind()),
            false => self.metrics.traffic.missed(path.kind()),
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
        let text = collect(&self.store, &path, declared, CACHE_INFO_LIMIT, feed).await?;
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
}

/// The NAR that a `debuginfo` object links to, if it is a link as Nix writes it. A link is served
/// only while its NAR is in the cache or at an upstream, because Nix does not upload a new link while the old one is found.
pub(crate) fn linked_nar(link: &Object) -> Option<CachePath> {
    #[derive(serde::Deserialize)]
    struct Link {
        archive: String,
    }
    let Content::Bytes(text) = &link.content else {
        return None;
    };
    let link: Link = serde_json::from_slice(text).ok()?;
    let path = link.archive.strip_prefix("../")?.parse().ok()?;
    matches!(path, CachePath::Nar(_)).then_some(path)
}
