//! A bucket of any S3-compatible object store: exactly the objects of Nix's own `s3://` cache, plus
//! `.nix-stored/` for the daemon's own objects. Several daemons may share a bucket: names are
//! hashes of contents, so two daemons that store the same object store the same bytes.
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

mod bucket;
mod changing;
mod client;
mod lease;
mod list;
mod listing;
mod part;
mod probe;
mod profile;
mod remote;
mod removing;
mod strict;
mod sweep;
mod upload;
mod uses;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{
    Availability, Content, KeyedLocks, Listed, Lock, Metadata, Object, RemoteTrouble, Removed,
    Store, StoreError, Stored, Upload,
};
use crate::config;
use crate::nix::{CachePath, LenientNarInfo, narinfo};
use bucket::{Bucket, DeleteError, Deleted, failed};
use changing::Turn;
use client::PATIENCE;
use listing::{Meta, pause};
use part::Budget;
pub use probe::Found;
use remote::Remote;
use removing::{Removers, Said};
use upload::S3Upload;
use uses::Uses;

/// The prefix of the daemon's own objects.
const OWN_FOLDER: &str = ".nix-stored/";

/// An object up to this size is read at once.
const SMALL: u64 = 256 * 1024;

/// The validity of a presigned URL. A running download continues.
const PRESIGNED_URL_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The interval between sweeps of unfinished uploads and merges of recorded uses.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

/// A store in a bucket.
#[derive(Debug)]
pub struct S3Store {
    bucket: Arc<Bucket>,
    uses: Arc<Uses>,
    budget: Budget,
    turns: Arc<KeyedLocks>,
    /// The objects that were removed here, with the time: their uses can be forgotten.
    gone: Arc<Mutex<HashMap<String, u64>>>,
    removers: Arc<Removers>,
    /// The announced removals.
    said: tokio::sync::Mutex<Option<Said>>,
    /// Entries of released locks that are still to be deleted.
    ending: TaskTracker,
    /// Whether the server looks before it stores, once it is known.
    looks: tokio::sync::OnceCell<bool>,
    location: config::Bucket,
    /// Whether objects may be stored, as far as was tried.
    writable: bool,
    runtime: Handle,
}

/// The reason why a bucket cannot be opened.
#[derive(Debug, Error)]
#[error("the bucket {bucket} {why}")]
pub struct OpenError {
    bucket: String,
    why: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl OpenError {
    fn new(
        bucket: &config::Bucket,
        why: &str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let (bucket, why) = (bucket.to_string(), why.to_owned());
        Self { bucket, why, source: Some(Box::new(source)) }
    }

    fn told(bucket: &config::Bucket, why: String) -> Self {
        Self { bucket: bucket.to_string(), why, source: None }
    }
}

impl S3Store {
    /// Opens the store in a bucket, tests what the bucket permits, and aborts unfinished uploads,
    /// now and every hour.
    pub async fn open(location: &config::Bucket) -> Result<(Self, Found), OpenError> {
        let mut store = Self::connect(location)?;
        let found = store.probe().await?;
        store.writable = found.writable;
        let (bucket, uses) = (Arc::clone(&store.bucket), Arc::clone(&store.uses));
        tokio::spawn(keep_tidy(bucket, uses, location.abandoned_after));
        store.know_uses().await?;
        Ok((store, found))
    }

    /// Opens a store that is there, and changes nothing by that.
    pub async fn open_existing(location: &config::Bucket) -> Result<Self, OpenError> {
        let store = Self::connect(location)?;
        store.know_uses().await?;
        Ok(store)
    }

    /// To be called within the runtime.
    fn connect(location: &config::Bucket) -> Result<Self, OpenError> {
        let bucket = Arc::new(Bucket::new(client::Clients::new(location)?, &location.prefix));
        let removers = Arc::new(Removers::new(Arc::clone(&bucket)));
        Ok(Self {
            uses: Arc::new(Uses::start(Arc::clone(&bucket), Arc::clone(&removers))),
            removers,
            said: tokio::sync::Mutex::default(),
            ending: TaskTracker::new(),
            looks: tokio::sync::OnceCell::new(),
            bucket,
            budget: Budget::new(),
            turns: Arc::default(),
            gone: Arc::default(),
            location: location.clone(),
            writable: true,
            runtime: Handle::current(),
        })
    }

    async fn know_uses(&self) -> Result<(), OpenError> {
        let known = self.uses.refresh().await;
        known.map_err(|error| OpenError::new(&self.location, "cannot be read", error))
    }

    fn metadata(&self, key: &str, meta: &Meta) -> Metadata {
        metadata(&self.uses, key, meta)
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
        let is_it = |it: Meta| it.size == meta.size && (it.etag.is_none() || it.etag == meta.etag);
        match listed.is_some_and(is_it) {
            true => Ok(()),
            false => Err(list::not_what_it_is(key, "the response is not a narinfo")),
        }
    }

    /// Announces the removal of `keys`, and reads the uses that were recorded before.
    async fn say(
        &self,
        keys: impl IntoIterator<Item = String>,
        said: &mut Option<Said>,
    ) -> Result<(), StoreError> {
        let new = Said::new(&self.bucket, keys).await?;
        if let Some(old) = said.replace(new) {
            old.take_back(&self.bucket).await;
        }
        self.uses.refresh().await
    }

    async fn remove_as_said(
        &self,
        key: &str,
        unused_since: SystemTime,
        said: &mut Option<Said>,
    ) -> Result<Removed, StoreError> {
        let begun = Instant::now();
        for tries in 0.. {
            let is_said = |said: &Said| said.keys.contains(key) && said.is_good();
            if !said.as_ref().is_some_and(is_said) {
                let more = said.as_ref().map(|said| said.keys.clone()).unwrap_or_default();
                self.say(more.into_iter().chain([key.to_owned()]), said).await?;
            }
            let Some(meta) = self.bucket.head(key).await? else {
                // A deletion of ours may have done it that was not answered.
                return Ok(if tries > 0 { self.has_gone(key) } else { Removed::Absent });
            };
            let used = self.uses.last_recorded(key).unwrap_or(meta.modified);
            if used.max(meta.modified) > unused_since {
                return Ok(Removed::InUse);
            }
            if !said.as_ref().is_some_and(Said::is_good) {
                continue;
            }
            match self.bucket.delete_once(key, meta.etag.as_deref()).await {
                Ok(Deleted::Done) => return Ok(self.has_gone(key)),
                Ok(Deleted::IsAnother) => {}
                Err(DeleteError { may_pass, may_come, error }) => {
                    if may_come {
                        // A use waits until the deletion can no longer take effect.
                        *said = None;
                    }
                    if !may_pass || begun.elapsed() >= PATIENCE {
                        return Err(error);
                    }
                }
            }
            // The request is not repeated unchanged: waiting uses come first.
            if let Some(said) = said.take() {
                said.take_back(&self.bucket).await;
            }
            tokio::time::sleep(pause(tries)).await;
        }
        unreachable!("time does not stand still")
    }

    fn has_gone(&self, key: &str) -> Removed {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.insert(key.to_owned(), uses::now());
        Removed::Gone
    }

    /// Deletes an object unless it is another one by now, as far as the server looks.
    async fn delete_as_it_is(&self, key: &str, meta: &Meta) -> Result<bool, StoreError> {
        match self.bucket.delete_once(key, meta.etag.as_deref()).await {
            Ok(deleted) => Ok(deleted == Deleted::Done),
            Err(error) => Err(error.error),
        }
    }

    /// Returns the key in the quarantine: the object's own name, or the first free one like `….1`.
    async fn free_name_aside(&self, key: &str) -> Result<String, StoreError> {
        let first = format!("{OWN_FOLDER}quarantine/{key}");
        let (mut aside, mut number) = (first.clone(), 0);
        while self.bucket.head(&aside).await?.is_some() {
            number += 1;
            aside = format!("{first}.{number}");
        }
        Ok(aside)
    }
}

async fn keep_tidy(bucket: Arc<Bucket>, uses: Arc<Uses>, age: Duration) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    loop {
        tick.tick().await;
        match sweep::sweep(&bucket, age).await {
            Ok(Some(0)) => {}
            Ok(Some(count)) => info!("aborted {count} unfinished uploads"),
            Ok(None) => debug!("the server cannot list unfinished uploads"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "cannot abort unfinished uploads");
            }
        }
        uses.merge_if_many().await;
    }
}

fn metadata(uses: &Uses, key: &str, meta: &Meta) -> Metadata {
    let modified = meta.modified;
    let etag = match &meta.etag {
        Some(etag) if etag.starts_with('"') => etag.clone(),
        Some(etag) => format!("\"{}\"", etag.trim_start_matches("W/").trim_matches('"')),
        // Not every server has them.
        None => {
            let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            format!("\"{}-{}\"", meta.size, since.as_micros())
        }
    };
    Metadata {
        size: meta.size,
        modified,
        used: uses.last(key).map_or(modified, |used| used.max(modified)),
        etag: etag.into(),
    }
}

impl Store for S3Store {
    fn head<'a>(
        &'a self,
        path: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<Metadata>, StoreError>> {
        async move {
            let key = path.key();
            let meta = self.bucket.head(&key).await?;
            Ok(meta.map(|meta| self.metadata(&key, &meta)))
        }
        .boxed()
    }

    fn get<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<Option<Object>, StoreError>> {
        async move {
            let key = path.key();
            let Some(found) = self.bucket.get(&key).await? else {
                return Ok(None);
            };
            let metadata = self.metadata(&key, &Meta::from(&found.meta));
            // A narinfo is always read at once, as in a directory.
            let limit = match path {
                CachePath::NarInfo(_) => narinfo::MAX_SIZE,
                _ => SMALL,
            };
            let content = if found.meta.size <= limit {
                let meta = Meta::from(&found.meta);
                let bytes = found.bytes().await.map_err(failed("reading", &key))?;
                if bytes.len() as u64 != meta.size {
                    return Err(list::not_what_it_is(&key, "the response has another length"));
                }
                if let CachePath::NarInfo(_) = path {
                    self.check_narinfo(&key, &meta, &bytes).await?;
                }
                Content::Bytes(bytes)
            } else {
                Content::Stream(Box::new(Remote::new(Arc::clone(&self.bucket), key, found)))
            };
            Ok(Some(Object { metadata, content }))
        }
        .boxed()
    }

    fn get_foreign<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<Object>, StoreError>> {
        async move {
            let Some(found) = self.bucket.get(key).await? else {
                return Ok(None);
            };
            let metadata = self.metadata(key, &Meta::from(&found.meta));
            let content = Remote::new(Arc::clone(&self.bucket), key.to_owned(), found);
            Ok(Some(Object { metadata, content: Content::Stream(Box::new(content)) }))
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            let key = path.key();
            let _turn = self.turns.take(&key).await;
            let older = self.bucket.seems_there(&key).await?;
            if older {
                // A collection may be about to remove it.
                self.uses.mark(key.clone()).await?;
            }
            self.bucket.put(&key, bytes, path.content_type()).await?;
            Ok(if older { Stored::Replaced } else { Stored::Created })
        }
        .boxed()
    }

    fn keep<'a>(
        &'a self,
        path: &'a CachePath,
        text: Bytes,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        super::keep(self, path, text).boxed()
    }

    fn replace<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
        before: Option<&'a Bytes>,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        async move {
            let key = path.key();
            let stored = if before.is_some() { Stored::Replaced } else { Stored::Created };
            if before.is_some() {
                self.uses.mark(key.clone()).await?;
            }
            // Also where the server looks: not every one looks and stores in one step.
            let turn = Turn::take(&self.bucket, &self.ending, &key).await?;
            if self.server_looks().await? {
                let etag = before.map(|etag| String::from_utf8_lossy(etag).into_owned());
                let put =
                    self.bucket.put_in_place_of(&key, bytes, path.content_type(), etag).await?;
                return Ok(put.then_some(stored));
            }
            let now = match before {
                // An object that is to be replaced and seems absent is checked again.
                Some(_) => self.bucket.head(&key).await?,
                None => match self.bucket.seems_there(&key).await? {
                    true => self.bucket.head(&key).await?,
                    false => None,
                },
            };
            let now = now.map(|meta| self.metadata(&key, &meta).etag);
            if now.as_ref() != before || !turn.is_good() {
                return Ok(None);
            }
            self.bucket.put(&key, bytes, path.content_type()).await?;
            Ok(Some(stored))
        }
        .boxed()
    }

    fn quarantine<'a>(
        &'a self,
        path: &'a CachePath,
        etag: &'a Bytes,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let key = path.key();
            // An object that is stored here meanwhile has another entity tag, and is kept.
            let _turn = self.turns.take(&key).await;
            let Some(meta) = self.bucket.head(&key).await? else {
                return Ok(false);
            };
            if self.metadata(&key, &meta).etag != etag {
                return Ok(false);
            }
            let aside = self.free_name_aside(&key).await?;
            if !self.bucket.copy(&key, &aside, meta.size).await? {
                return Ok(false);
            }
            // Copying takes its time, and another daemon may have stored it anew.
            let again = self.bucket.head(&key).await?;
            let is_the_same = again.is_some_and(|meta| self.metadata(&key, &meta).etag == etag);
            if is_the_same && self.delete_as_it_is(&key, &meta).await? {
                return Ok(true);
            }
            self.bucket.delete(&aside).await?;
            Ok(false)
        }
        .boxed()
    }

    fn touch(&self, path: &CachePath) {
        self.uses.note(path.key());
    }

    fn touch_now<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let key = path.key();
            self.uses.mark(key.clone()).await?;
            // Not earlier: a collection reads the uses first.
            Ok(self.bucket.head(&key).await?.is_some())
        }
        .boxed()
    }

    fn remove<'a>(
        &'a self,
        path: &'a CachePath,
        unused_since: SystemTime,
    ) -> BoxFuture<'a, Result<Removed, StoreError>> {
        async move {
            let key = path.key();
            let mut said = self.said.lock().await;
            let is_one_of_many = said.as_ref().is_some_and(|said| said.keys.contains(&key));
            let removed = self.remove_as_said(&key, unused_since, &mut said).await;
            // No use waits longer than necessary.
            if (removed.is_err() || !is_one_of_many)
                && let Some(said) = said.take()
            {
                said.take_back(&self.bucket).await;
            }
            removed
        }
        .boxed()
    }

    fn will_remove<'a>(&'a self, paths: &'a [CachePath]) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let mut said = self.said.lock().await;
            self.say(paths.iter().map(CachePath::key), &mut said).await
        }
        .boxed()
    }

    fn sync_removals(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            if let Some(said) = self.said.lock().await.take() {
                said.take_back(&self.bucket).await;
            }
            // Removals in a bucket are durable. The uses of removed objects can be forgotten.
            let gone =
                std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner));
            if gone.is_empty() { Ok(()) } else { self.uses.forget(&gone).await }
        }
        .boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.ending.close();
            self.ending.wait().await;
            self.uses.flush().await
        }
        .boxed()
    }

    fn lock_holder(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        lease::holder(&self.bucket).boxed()
    }

    fn break_lock(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        lease::break_it(&self.bucket).boxed()
    }

    fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        let (bucket, uses) = (Arc::clone(&self.bucket), Arc::clone(&self.uses));
        list::list(bucket, uses, wanted).into_stream().try_flatten().boxed()
    }

    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>> {
        async move {
            let below = format!("{OWN_FOLDER}{folder}/");
            let name = |(key, _): (String, _)| key.strip_prefix(&below).map(str::to_owned);
            let listed = self.bucket.list(&below);
            let mut names: Vec<_> =
                listed.try_filter_map(|found| async { Ok(name(found)) }).try_collect().await?;
            names.sort_unstable();
            Ok(names)
        }
        .boxed()
    }

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        async move { self.bucket.read(&format!("{OWN_FOLDER}{name}")).await }.boxed()
    }

    fn set_note<'a>(
        &'a self,
        name: &'a str,
        text: Option<Bytes>,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            let key = format!("{OWN_FOLDER}{name}");
            let older = self.bucket.head(&key).await?;
            match text {
                Some(text) => {
                    self.bucket.put(&key, text, "text/plain; charset=utf-8").await?;
                }
                None if older.is_some() => self.bucket.delete(&key).await?,
                None => {}
            }
            Ok(older.is_some())
        }
        .boxed()
    }

    fn lock(&self) -> BoxFuture<'_, Result<Option<Lock>, StoreError>> {
        async move {
            let Some(lease) = lease::take(&self.bucket).await? else {
                return Ok(None);
            };
            self.removers.clear().await?;
            Ok(Some(Lock::new(lease)))
        }
        .boxed()
    }

    fn free_space(&self) -> Option<u64> {
        None
    }

    fn check(&self) -> BoxFuture<'_, Availability> {
        async move {
            match probe::can_read(&self.bucket).await {
                Err(error) => Availability::Unusable(error),
                Ok(()) if self.writable && !self.uses.are_denied() => Availability::ReadWrite,
                Ok(()) => Availability::ReadOnly(StoreError::Remote {
                    doing: "writing to",
                    key: "the bucket".to_owned(),
                    trouble: RemoteTrouble::Denied,
                    source: match self.writable {
                        true => "a use could not be recorded".into(),
                        false => "the bucket was not writable at start".into(),
                    },
                }),
            }
        }
        .boxed()
    }

    fn presigned_url<'a>(
        &'a self,
        path: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<String>, StoreError>> {
        async move { self.bucket.presigned_url(&path.key(), PRESIGNED_URL_LIFETIME).await.map(Some) }.boxed()
    }

    fn start_upload(
        &self,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<Box<dyn Upload>, StoreError> {
        let (bucket, budget) = (Arc::clone(&self.bucket), self.budget.clone());
        let (turns, uses) = (Arc::clone(&self.turns), Arc::clone(&self.uses));
        let runtime = self.runtime.clone();
        Ok(Box::new(S3Upload::new(bucket, budget, turns, uses, runtime, path, size)))
    }

    fn scratch(&self, path: &CachePath, _: Option<u64>) -> Result<File, StoreError> {
        tempfile::tempfile().map_err(|error| StoreError::new("staging", &path.key(), error))
    }
}
