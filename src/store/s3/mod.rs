//! The store in a bucket of any S3-compatible object store: exactly the objects of Nix's own
//! `s3://` cache, plus `.nix-stored/` for the daemon's own objects. Several daemons may share a
//! bucket: names are hashes of contents, so two daemons that store the same object store the same
//! bytes.
//!
//! ```text
//! nix-cache-info  <hash>.narinfo  nar/…  and so on, as in a directory
//! .nix-stored/uses/<time>-<writer>   uses of objects
//! .nix-stored/pins/<name>            pinned store paths
//! .nix-stored/quarantine/            damaged objects, under their own names
//! .nix-stored/lock                   the holder of the collection lock
//! .nix-stored/removing/<time>-<writer>  objects that are about to be removed
//! .nix-stored/changing/<key>/<time>-<writer>  a process that changes an object
//! ```
//!
//! `S3Store` has the operations. `client` creates the HTTP clients (`profile` reads `~/.aws`,
//! `strict` rejects responses of other programs), `probe` tests what the server supports, and
//! `open_error` is the error of `client` and `probe`. `bucket` has the requests, retried after the pauses of
//! `retry`; `listing` lists keys, `meta` is the metadata of an object, and `remote` reads a large
//! one. `upload` sends the `part`s of an object, and `sweep` aborts unfinished uploads. `uses`
//! records uses, `list` lists objects, and `removing` and `changing` coordinate removals and
//! changes with other daemons, by objects with a `unique_name`. `private_files` has pins and the
//! collection lock, which is the `lease`.

mod bucket;
mod changing;
mod client;
mod lease;
mod list;
mod listing;
mod meta;
mod open_error;
mod part;
mod private_files;
mod probe;
mod profile;
mod remote;
mod removing;
mod retry;
mod strict;
mod sweep;
mod unique_name;
mod upload;
mod uses;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::config;
use crate::logging::with_causes;
use crate::nix::{CachePath, LenientNarInfo, narinfo};
use crate::store::{
    Availability, Content, KeyedLocks, Listed, Metadata, Object, RemoteFailure, Removed,
    StoreError, Stored,
};
use bucket::{
    BucketClient, DOWNLOAD_WHOLE_LIMIT, DeleteError, Deleted, OWN_PREFIX, contradiction, failed,
};
use changing::ChangeLock;
use meta::Meta;
pub(super) use open_error::OpenBucketError;
use part::UploadBudget;
pub(super) use private_files::S3PrivateFiles;
pub(super) use probe::BucketCapabilities;
use probe::ConditionalWrites;
use remote::RemoteObject;
use removing::{Announcement, Announcements};
use retry::{RETRY_TIMEOUT, pause};
use upload::S3Upload;
use uses::S3Uses;

/// The validity of a presigned URL. A running download continues.
const PRESIGNED_URL_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The interval between sweeps of unfinished uploads and merges of recorded uses.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(3600);

/// A store in a bucket. [`Store`](super::Store) describes the operations.
#[derive(Debug)]
pub struct S3Store {
    bucket: Arc<BucketClient>,
    uses: Arc<S3Uses>,
    budget: UploadBudget,
    locks: Arc<KeyedLocks>,
    /// The objects that this process removed, with the time of the removal. Their uses can be
    /// deleted.
    removed: Arc<Mutex<HashMap<String, u64>>>,
    /// The announced removals of this process.
    announcement: tokio::sync::Mutex<Option<Announcement>>,
    /// The tasks that delete the entries of released change locks.
    releases: TaskTracker,
    conditional_writes: ConditionalWrites,
    private_files: S3PrivateFiles,
    location: config::Bucket,
    /// Whether objects may be stored; true if that was not tested.
    writable: bool,
    runtime: Handle,
}

impl S3Store {
    /// Opens the store in a bucket, tests what the bucket permits, and aborts unfinished uploads,
    /// now and every hour.
    pub async fn open(
        location: &config::Bucket,
    ) -> Result<(Self, BucketCapabilities), OpenBucketError> {
        let mut store = Self::connect(location)?;
        let found = probe::probe(&store.bucket, location, &store.conditional_writes).await?;
        store.writable = found.writable;
        let (bucket, uses) = (Arc::clone(&store.bucket), Arc::clone(&store.uses));
        tokio::spawn(maintain(bucket, uses, location.abandoned_after));
        store.load_uses().await?;
        Ok((store, found))
    }

    /// Opens an existing store without changing anything.
    pub async fn open_existing(location: &config::Bucket) -> Result<Self, OpenBucketError> {
        let store = Self::connect(location)?;
        store.load_uses().await?;
        Ok(store)
    }

    /// Creates the clients; sends nothing. Must be called within the runtime.
    fn connect(location: &config::Bucket) -> Result<Self, OpenBucketError> {
        let bucket = Arc::new(BucketClient::new(client::Clients::new(location)?, &location.prefix));
        let announcements = Arc::new(Announcements::new(Arc::clone(&bucket)));
        Ok(Self {
            uses: Arc::new(S3Uses::start(Arc::clone(&bucket), Arc::clone(&announcements))),
            private_files: S3PrivateFiles::new(Arc::clone(&bucket), announcements),
            announcement: tokio::sync::Mutex::default(),
            releases: TaskTracker::new(),
            conditional_writes: ConditionalWrites::default(),
            bucket,
            budget: UploadBudget::new(),
            locks: Arc::default(),
            removed: Arc::default(),
            location: location.clone(),
            writable: true,
            runtime: Handle::current(),
        })
    }

    async fn load_uses(&self) -> Result<(), OpenBucketError> {
        let loaded = self.uses.refresh().await;
        loaded.map_err(|error| OpenBucketError::new(&self.location, "cannot be read", error))
    }

    fn metadata(&self, key: &str, meta: &Meta) -> Metadata {
        meta.to_metadata(self.uses.last(key))
    }

    /// Checks that a response is a narinfo. A text without any field of a narinfo comes from
    /// another program than the object store, unless the store lists an object of that size with
    /// the same entity tag.
    async fn check_narinfo(&self, key: &str, meta: &Meta, text: &[u8]) -> Result<(), StoreError> {
        if !LenientNarInfo::read(text).is_empty() {
            return Ok(());
        }
        let listed = self.bucket.find_listed(key).await?;
        // Not every server lists entity tags.
        let is_same = |listed: Meta| {
            listed.size == meta.size && (listed.etag.is_none() || listed.etag == meta.etag)
        };
        match listed.is_some_and(is_same) {
            true => Ok(()),
            false => Err(contradiction(key, "the response is not a narinfo")),
        }
    }

    /// Announces the removal of `keys`, and then reads the recorded uses.
    async fn announce(
        &self,
        keys: impl IntoIterator<Item = String>,
        announced: &mut Option<Announcement>,
    ) -> Result<(), StoreError> {
        let new = Announcement::new(&self.bucket, keys).await?;
        if let Some(old) = announced.replace(new) {
            old.withdraw(&self.bucket).await;
        }
        self.uses.refresh().await
    }

    async fn remove_announced(
        &self,
        key: &str,
        unused_since: SystemTime,
        announced: &mut Option<Announcement>,
    ) -> Result<Removed, StoreError> {
        let started = Instant::now();
        for tries in 0.. {
            let is_announced =
                |announced: &Announcement| announced.keys.contains(key) && announced.is_valid();
            if !announced.as_ref().is_some_and(is_announced) {
                let more =
                    announced.as_ref().map(|announced| announced.keys.clone()).unwrap_or_default();
                self.announce(more.into_iter().chain([key.to_owned()]), announced).await?;
            }
            let Some(meta) = self.bucket.head(key).await? else {
                // An earlier deletion, whose response was lost, may have removed it.
                return Ok(if tries > 0 { self.record_removal(key) } else { Removed::Absent });
            };
            let used = self.uses.last_recorded(key).unwrap_or(meta.modified);
            if used.max(meta.modified) > unused_since {
                return Ok(Removed::InUse);
            }
            if !announced.as_ref().is_some_and(Announcement::is_valid) {
                continue;
            }
            match self.bucket.delete_once(key, meta.etag.as_deref()).await {
                Ok(Deleted::Done) => return Ok(self.record_removal(key)),
                Ok(Deleted::IsAnother) => {}
                Err(DeleteError { is_temporary, may_take_effect, error }) => {
                    if may_take_effect {
                        // A use waits until the deletion can no longer take effect.
                        *announced = None;
                    }
                    if !is_temporary || started.elapsed() >= RETRY_TIMEOUT {
                        return Err(error);
                    }
                }
            }
            // The announcement is withdrawn before a retry, so that daemons that wait to use the
            // object can go on, and the retry sees their uses.
            if let Some(announced) = announced.take() {
                announced.withdraw(&self.bucket).await;
            }
            tokio::time::sleep(pause(tries)).await;
        }
        unreachable!("the loop ends after RETRY_TIMEOUT")
    }

    fn record_removal(&self, key: &str) -> Removed {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        removed.insert(key.to_owned(), uses::now());
        Removed::Gone
    }

    /// Deletes an object. On servers with conditional writes, does nothing if the object was
    /// replaced.
    async fn delete_if_unchanged(&self, key: &str, meta: &Meta) -> Result<bool, StoreError> {
        match self.bucket.delete_once(key, meta.etag.as_deref()).await {
            Ok(deleted) => Ok(deleted == Deleted::Done),
            Err(error) => Err(error.error),
        }
    }

    /// Returns the key in the quarantine: the object's own name, or the first free one like `….1`.
    async fn free_quarantine_key(&self, key: &str) -> Result<String, StoreError> {
        let first = format!("{OWN_PREFIX}quarantine/{key}");
        let (mut target, mut number) = (first.clone(), 0);
        while self.bucket.head(&target).await?.is_some() {
            number += 1;
            target = format!("{first}.{number}");
        }
        Ok(target)
    }
}

async fn maintain(bucket: Arc<BucketClient>, uses: Arc<S3Uses>, age: Duration) {
    let mut tick = tokio::time::interval(MAINTENANCE_INTERVAL);
    loop {
        tick.tick().await;
        match sweep::sweep(&bucket, age).await {
            Ok(Some(0)) => {}
            Ok(Some(count)) => info!("aborted {count} unfinished uploads"),
            Ok(None) => debug!("the server cannot list unfinished uploads"),
            Err(error) => {
                warn!(error = %with_causes(&error), "cannot abort unfinished uploads");
            }
        }
        uses.merge_if_many().await;
    }
}

impl S3Store {
    pub(super) async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, StoreError> {
        let key = path.key();
        let meta = self.bucket.head(&key).await?;
        Ok(meta.map(|meta| self.metadata(&key, &meta)))
    }

    pub(super) async fn get(&self, path: &CachePath) -> Result<Option<Object>, StoreError> {
        let key = path.key();
        let Some(found) = self.bucket.get(&key).await? else {
            return Ok(None);
        };
        let metadata = self.metadata(&key, &Meta::from(&found.meta));
        // A narinfo is always read into memory, as in a directory.
        let limit = match path {
            CachePath::NarInfo(_) => narinfo::MAX_SIZE,
            _ => DOWNLOAD_WHOLE_LIMIT,
        };
        let content = if found.meta.size <= limit {
            let meta = Meta::from(&found.meta);
            let bytes = found.bytes().await.map_err(failed("reading", &key))?;
            if bytes.len() as u64 != meta.size {
                return Err(contradiction(&key, "the response has another length"));
            }
            if let CachePath::NarInfo(_) = path {
                self.check_narinfo(&key, &meta, &bytes).await?;
            }
            Content::Bytes(bytes)
        } else {
            Content::Stream(Box::new(RemoteObject::new(Arc::clone(&self.bucket), key, found)))
        };
        Ok(Some(Object { metadata, content }))
    }

    pub(super) async fn get_foreign(&self, key: &str) -> Result<Option<Object>, StoreError> {
        let Some(found) = self.bucket.get(key).await? else {
            return Ok(None);
        };
        let metadata = self.metadata(key, &Meta::from(&found.meta));
        let content = RemoteObject::new(Arc::clone(&self.bucket), key.to_owned(), found);
        Ok(Some(Object { metadata, content: Content::Stream(Box::new(content)) }))
    }

    pub(super) async fn put(&self, path: &CachePath, bytes: Bytes) -> Result<Stored, StoreError> {
        let key = path.key();
        let _lock = self.locks.take(&key).await;
        let older = self.bucket.is_probably_present(&key).await?;
        if older {
            // A running collection must not remove the object.
            self.uses.mark(key.clone()).await?;
        }
        self.bucket.put(&key, bytes, path.content_type()).await?;
        Ok(if older { Stored::Replaced } else { Stored::Created })
    }

    pub(super) async fn replace(
        &self,
        path: &CachePath,
        bytes: Bytes,
        before: Option<&Bytes>,
    ) -> Result<Option<Stored>, StoreError> {
        let key = path.key();
        let stored = if before.is_some() { Stored::Replaced } else { Stored::Created };
        if before.is_some() {
            self.uses.mark(key.clone()).await?;
        }
        // The lock is needed even with conditional writes, because some servers check and store in
        // two steps.
        let lock = ChangeLock::take(&self.bucket, &self.releases, &key).await?;
        if self.conditional_writes.are_supported(&self.bucket).await? {
            let etag = before.map(|etag| String::from_utf8_lossy(etag).into_owned());
            let put = self.bucket.put_in_place_of(&key, bytes, path.content_type(), etag).await?;
            return Ok(put.then_some(stored));
        }
        let now = match before {
            // An object that is to be replaced and seems absent is checked again.
            Some(_) => self.bucket.head(&key).await?,
            None => match self.bucket.is_probably_present(&key).await? {
                true => self.bucket.head(&key).await?,
                false => None,
            },
        };
        let now = now.map(|meta| self.metadata(&key, &meta).etag);
        if now.as_ref() != before || !lock.is_valid() {
            return Ok(None);
        }
        self.bucket.put(&key, bytes, path.content_type()).await?;
        Ok(Some(stored))
    }

    pub(super) async fn quarantine(
        &self,
        path: &CachePath,
        etag: &Bytes,
    ) -> Result<bool, StoreError> {
        let key = path.key();
        // An object that is stored here meanwhile has another entity tag, and is kept.
        let _lock = self.locks.take(&key).await;
        let Some(meta) = self.bucket.head(&key).await? else {
            return Ok(false);
        };
        if self.metadata(&key, &meta).etag != etag {
            return Ok(false);
        }
        let target = self.free_quarantine_key(&key).await?;
        if !self.bucket.copy(&key, &target, meta.size).await? {
            return Ok(false);
        }
        // Another daemon may have stored a new object during the copy.
        let again = self.bucket.head(&key).await?;
        let is_the_same = again.is_some_and(|meta| self.metadata(&key, &meta).etag == etag);
        if is_the_same && self.delete_if_unchanged(&key, &meta).await? {
            return Ok(true);
        }
        self.bucket.delete(&target).await?;
        Ok(false)
    }

    pub(super) fn touch(&self, path: &CachePath) {
        self.uses.note(path.key());
    }

    pub(super) async fn touch_now(&self, path: &CachePath) -> Result<bool, StoreError> {
        let key = path.key();
        self.uses.mark(key.clone()).await?;
        // The check comes after the record, because a collection reads the uses before it removes
        // objects.
        Ok(self.bucket.head(&key).await?.is_some())
    }

    pub(super) async fn remove(
        &self,
        path: &CachePath,
        unused_since: SystemTime,
    ) -> Result<Removed, StoreError> {
        let key = path.key();
        let mut announced = self.announcement.lock().await;
        let is_one_of_many =
            announced.as_ref().is_some_and(|announced| announced.keys.contains(&key));
        let removed = self.remove_announced(&key, unused_since, &mut announced).await;
        // Waiting uses can continue now.
        if (removed.is_err() || !is_one_of_many)
            && let Some(announced) = announced.take()
        {
            announced.withdraw(&self.bucket).await;
        }
        removed
    }

    pub(super) async fn will_remove(&self, paths: &[CachePath]) -> Result<(), StoreError> {
        let mut announced = self.announcement.lock().await;
        self.announce(paths.iter().map(CachePath::key), &mut announced).await
    }

    pub(super) async fn sync_removals(&self) -> Result<(), StoreError> {
        if let Some(announced) = self.announcement.lock().await.take() {
            announced.withdraw(&self.bucket).await;
        }
        // Removals in a bucket are durable already. The uses of removed objects can be deleted.
        let gone =
            std::mem::take(&mut *self.removed.lock().unwrap_or_else(PoisonError::into_inner));
        if gone.is_empty() { Ok(()) } else { self.uses.forget(&gone).await }
    }

    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        self.releases.close();
        self.releases.wait().await;
        self.uses.flush().await
    }

    pub(super) fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        let (bucket, uses) = (Arc::clone(&self.bucket), Arc::clone(&self.uses));
        list::list(bucket, uses, wanted).into_stream().try_flatten().boxed()
    }

    pub(super) async fn check(&self) -> Availability {
        match probe::check_readable(&self.bucket).await {
            Err(error) => Availability::Unusable(error),
            Ok(()) if self.writable && !self.uses.are_denied() => Availability::ReadWrite,
            Ok(()) => Availability::ReadOnly(StoreError::Remote {
                doing: "writing to",
                key: "the bucket".to_owned(),
                failure: RemoteFailure::Denied,
                source: match self.writable {
                    true => "a use could not be recorded".into(),
                    false => "the bucket was not writable at start".into(),
                },
            }),
        }
    }

    pub(super) async fn presigned_url(
        &self,
        path: &CachePath,
    ) -> Result<Option<String>, StoreError> {
        self.bucket.presigned_url(&path.key(), PRESIGNED_URL_LIFETIME).await.map(Some)
    }

    pub(super) fn private_files(&self) -> &S3PrivateFiles {
        &self.private_files
    }

    pub(super) fn start_upload(&self, path: &CachePath, size: Option<u64>) -> S3Upload {
        let (bucket, budget) = (Arc::clone(&self.bucket), self.budget.clone());
        let (locks, uses) = (Arc::clone(&self.locks), Arc::clone(&self.uses));
        let runtime = self.runtime.clone();
        S3Upload::new(bucket, budget, locks, uses, runtime, path, size)
    }
}
