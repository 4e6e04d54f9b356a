//! Fetches NARs from upstreams, once for all clients.
//!
//! A NAR is treated like an upload: staged, hashed and unpacked during the transfer, and published
//! after verification, followed by its narinfo. If the last client disconnects, the fetch continues
//! to its end, because the same client often returns after a timeout. Only the fetch of a NAR that
//! is not stored is stopped then.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::{info, warn};

use super::client::Client;
use super::error::{GetError, UpstreamError, get_error};
use super::notifying_upload::{NotifyingUpload, TemporaryUpload, warn_without_copy};
use super::partial_nar::{self, PartialNar};
use super::provisional::Provisional;
use super::remote::Remote;
use super::resuming_body::{Started, resuming};
use super::upstreams::Upstreams;
use crate::cache::{Cache, NarContents, NarFacts, Received, check_against_nar};
use crate::config::Verify;
use crate::ingest::{self, BATCH, Feed, PutError, Stage, Turn};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, NarInfo};
use crate::store::{Content, Metadata, Object, StoreError, Upload};
use crate::unpack::UnpackError;

/// Fetches NARs. A clone fetches for the same cache.
#[derive(Clone)]
pub(super) struct NarFetcher {
    pub cache: Arc<Cache>,
    pub upstreams: Arc<Upstreams>,
}

impl NarFetcher {
    /// Returns a NAR that is not in the store.
    pub(super) async fn get(&self, name: NarName) -> Result<Option<Object>, GetError> {
        match self.start_or_join(name).await? {
            Some(Requested::Stored(object)) => Ok(Some(object)),
            Some(Requested::InTransfer { object, .. }) => Ok(Some(object.await?)),
            None => Ok(None),
        }
    }

    /// Starts to fetch a NAR, unless it is being fetched or has just been stored.
    async fn start_or_join(&self, name: NarName) -> Result<Option<Requested>, GetError> {
        let Self { cache, upstreams } = self;
        if upstreams.is_empty() {
            return Ok(None);
        }
        let _lock = upstreams.request_locks.lock(name).await;
        let running = upstreams.fetches().get(&name).cloned();
        if let Some(growing) = running {
            return Ok(Some(Requested::in_transfer(growing)));
        }
        // It may have arrived while others were waited for.
        let stored = self.stored_nar(name).await?;
        if let Some(object) = cache.store().get(&CachePath::Nar(stored)).await? {
            return Ok(Some(Requested::Stored(object)));
        }
        let remote = upstreams.nars.get(&name);
        let Some(started) = upstreams.request_nar(name, remote.as_deref()).await? else {
            // Its narinfo is not to be had either, then.
            upstreams.forget(name);
            return Ok(None);
        };
        let turn = upstreams.fetch_limit.take().await;
        let client = Arc::clone(&started.source.client);
        let staged = self.stage(name, started.size, &client).await;
        let (upload, growing) = staged.map_err(|error| get_error(error, &client.name))?;
        upstreams.fetches().insert(name, Arc::clone(&growing));
        info!(upstream = %client.name, path = %CachePath::Nar(name), "fetching a NAR");
        // The reader exists before the fetch starts: a fetch without readers may stop.
        let requested = Requested::in_transfer(Arc::clone(&growing));
        tokio::spawn(self.clone().fetch(name, started, remote, upload, growing, turn));
        Ok(Some(requested))
    }

    /// Creates the upload for a NAR, and the state that its readers share.
    ///
    /// A NAR that is not kept or has no final name yet is staged in a temporary file.
    async fn stage(
        &self,
        name: NarName,
        size: Option<u64>,
        client: &Client,
    ) -> Result<(Box<dyn Upload>, Arc<PartialNar>), PutError> {
        let (store, upstream) = (Arc::clone(self.cache.store()), client.name.clone());
        let is_final = client.store && Provisional::of(name).is_none();
        ingest::in_the_pool(move || {
            let path = CachePath::Nar(name);
            let temporary = || TemporaryUpload::create(&store, &path, size);
            let inner: Box<dyn Upload> =
                if is_final { store.start_upload(&path, size)? } else { Box::new(temporary()?) };
            let (file, copy) = match inner.staged()? {
                Some(file) => (Some(file), None),
                None => match temporary() {
                    Ok(copy) => (copy.staged()?, Some(copy)),
                    Err(error) => {
                        warn_without_copy(&error);
                        (None, None)
                    }
                },
            };
            let growing = PartialNar::new(name, size, file, Arc::clone(&store), upstream);
            let growing = Arc::new(growing);
            let upload = NotifyingUpload::new(inner, copy, Arc::clone(&growing));
            Ok((Box::new(upload) as Box<dyn Upload>, growing))
        })
        .await
    }

    /// The name under which the NAR `name` is stored.
    async fn stored_nar(&self, name: NarName) -> Result<NarName, GetError> {
        match Provisional::of(name) {
            Some(provisional) => Ok(self.own_nar_of(provisional).await?.unwrap_or(name)),
            None => Ok(name),
        }
    }

    /// The stored NAR that a provisional name refers to, by the narinfo of its store path.
    async fn own_nar_of(&self, provisional: Provisional) -> Result<Option<NarName>, GetError> {
        let (hash, path) = (provisional.path, CachePath::NarInfo(provisional.path));
        let Some(object) = self.cache.find_narinfo(&path, &hash).await? else {
            return Ok(None);
        };
        let Content::Bytes(text) = object.content else {
            return Ok(None);
        };
        let info = self.cache.parse_stored(text).await;
        Ok(info.and_then(|info| provisional.nar_of(&info)))
    }

    /// The NAR that `name` refers to. If `name` is provisional, that is the NAR of its store path, here or
    /// at an upstream.
    pub(super) async fn canonical(&self, name: NarName) -> Result<NarName, GetError> {
        let Some(provisional) = Provisional::of(name) else {
            return Ok(name);
        };
        if let Some(own) = self.own_nar_of(provisional).await? {
            return Ok(own);
        }
        // The lookup also fills `upstreams.nars`, from which the NAR is fetched.
        let (dir, decoders) = (&self.cache.info().store_dir, self.cache.decoders());
        let remote = self.upstreams.lookup(&provisional.path, dir, decoders).await?;
        Ok(remote.and_then(|remote| provisional.nar_of(&remote.info(dir))).unwrap_or(name))
    }

    /// Waits until a NAR of an upstream is in the store. Returns false if no upstream has it.
    pub(super) async fn fetch_to_end(&self, name: NarName) -> Result<bool, GetError> {
        match self.start_or_join(name).await? {
            Some(Requested::InTransfer { nar, object: _object }) => drop(nar.end().await),
            Some(Requested::Stored(_)) => {}
            None => return Ok(false),
        }
        Ok(self.cache.store().head(&CachePath::Nar(name)).await?.is_some())
    }

    /// Returns the metadata of a NAR of an upstream.
    pub(super) async fn head(&self, name: NarName) -> Result<Option<Metadata>, GetError> {
        let upstreams = &self.upstreams;
        let running = upstreams.fetches().get(&name).and_then(|growing| growing.metadata());
        if let Some(metadata) = running {
            return Ok(Some(metadata));
        }
        let remote = upstreams.nars.get(&name);
        let Some((kept, size)) = upstreams.request_nar_size(name, remote.as_deref()).await? else {
            return Ok(None);
        };
        // Nix sends HEAD for a NAR that it is about to upload. A NAR that is not stored here must
        // not prevent the upload.
        match size {
            _ if !kept => Ok(None),
            Some(size) => Ok(Some(partial_nar::metadata(name, size, SystemTime::now()))),
            // To know its length takes all of it.
            None => Ok(self.get(name).await?.map(|object| object.metadata)),
        }
    }

    async fn fetch(
        self,
        name: NarName,
        started: Started,
        remote: Option<Arc<Remote>>,
        upload: Box<dyn Upload>,
        growing: Arc<PartialNar>,
        turn: Turn,
    ) {
        let upstreams = &*self.upstreams;
        let mut ending = FetchGuard { upstreams, name, growing, right: None };
        let client = Arc::clone(&started.source.client);
        let done = self.take(name, started, remote.as_deref(), upload, &ending.growing, turn).await;
        if let Err(error) = &done {
            let (path, upstream) = (CachePath::Nar(name), &client.name);
            warn!(%upstream, %path, %error, "fetch of a NAR failed");
            let is_ours = matches!(error, PutError::Store(_));
            let is_line = matches!(error, PutError::Body(_));
            if !is_ours && !is_line {
                upstreams.mark_bad(&client, name);
            }
        }
        // The NAR is published before its readers are notified, so that they can read it from the
        // store.
        ending.right = done.ok();
    }

    /// Takes a NAR that arrives, and its narinfo, if they agree. Returns the length of its file.
    async fn take(
        &self,
        name: NarName,
        started: Started,
        remote: Option<&Remote>,
        upload: Box<dyn Upload>,
        growing: &Arc<PartialNar>,
        turn: Turn,
    ) -> Result<u64, PutError> {
        let (size, kept) = (started.size, started.source.client.store);
        let feed = Feed::new(Box::pin(resuming(started, Arc::clone(growing), kept)), turn);
        let info = remote.map(|remote| remote.info(&self.cache.info().store_dir));
        let limit = match (size, &info) {
            (Some(size), _) => size,
            (None, Some(info)) => max_file_size(info.nar_size),
            (None, None) => u64::MAX,
        };
        let (name, facts, size) = match (Provisional::of(name), &info) {
            (Some(_), Some(info)) => {
                let extension = name.extension;
                let stage = Stage::new(upload, limit);
                let received =
                    self.cache.receive_nar(extension, None, Verify::Nar, stage, size, feed);
                self.store_under_file_hash(info, received.await?, kept).await?
            }
            (_, info) => {
                let info = info.clone();
                let agreed = move |facts| {
                    if let (Some(info), Some(facts)) = (&info, facts) {
                        check_against_nar(info, name, facts)?;
                    }
                    Ok(kept)
                };
                let streamed =
                    self.cache.stream_nar(name, upload, size, limit, agreed, feed).await?;
                (name, streamed.facts, streamed.size)
            }
        };
        if !kept {
            return Ok(size);
        }
        if let Some(facts) = facts {
            self.cache.remember_facts(name, facts).await;
        }
        if let (Some(mut info), Some(remote)) = (info, remote) {
            info.url = CachePath::Nar(name).key();
            self.cache.store_mirrored_narinfo(info, &remote.client.name).await?;
        }
        Ok(size)
    }

    /// Checks a NAR that was received under a provisional name against its narinfo, and stores it under
    /// the name by its file hash if it is to be `kept`.
    async fn store_under_file_hash(
        &self,
        info: &NarInfo,
        received: Received,
        kept: bool,
    ) -> Result<(NarName, Option<NarFacts>, u64), PutError> {
        let Received { name, size, contents, upload } = received;
        let path = CachePath::Nar(name);
        let unread = || PutError::Read { key: path.key(), source: io::ErrorKind::NotFound.into() };
        let facts = NarFacts { file_size: size, contents: contents.ok_or_else(unread)? };
        check_against_nar(info, name, facts)?;
        if let NarContents::NoDecoder(compression) = facts.contents {
            // Only NarHash could prove that this is the right file.
            return Err(UnpackError::NoDecoder(compression).into());
        }
        if kept {
            let mut stored = ingest::start_upload(self.cache.store(), &path, Some(size)).await?;
            let metrics = Arc::clone(self.cache.metrics());
            let copy = move || {
                let file = upload.staged()?.ok_or(io::ErrorKind::NotFound);
                let key = CachePath::Nar(name).key();
                let read = |source| PutError::Read { key: key.clone(), source };
                let mut file =
                    ingest::read_at(&Arc::new(file.map_err(|kind| read(kind.into()))?), size);
                let mut buffer = vec![0; BATCH];
                loop {
                    match file.read(&mut buffer).map_err(read)? {
                        0 => break,
                        count => stored.write(&buffer[..count])?,
                    }
                }
                ingest::commit(stored, &metrics)
            };
            let stored = ingest::in_the_pool(copy).await?;
            self.cache.count(&path, stored, size);
        }
        Ok((name, Some(facts), size))
    }

    /// Stores the narinfo of a path whose NAR is already in the store, from another path or an
    /// interrupted upload: such a NAR will not be fetched, so the narinfo is stored now.
    pub(super) async fn store_narinfo_of_stored_nar(
        &self,
        remote: &Arc<Remote>,
    ) -> Result<(), StoreError> {
        let nar = CachePath::Nar(remote.nar);
        if !remote.client.store || self.cache.store().head(&nar).await?.is_none() {
            return Ok(());
        }
        let (fetcher, remote) = (self.clone(), Arc::clone(remote));
        tokio::spawn(async move {
            let Self { cache, upstreams } = fetcher;
            let info = remote.info(&cache.info().store_dir);
            let stored = cache.store_mirrored_narinfo(info, &remote.client.name).await;
            if let Err(error) = stored {
                let (store_path, upstream) = (&remote.store_path, &remote.client.name);
                warn!(%upstream, %store_path, %error, "cannot store the narinfo of an upstream");
                if !matches!(error, PutError::Store(_)) {
                    upstreams.mark_bad(&remote.client, remote.nar);
                }
            }
        });
        Ok(())
    }
}

/// A NAR that was requested.
enum Requested {
    Stored(Object),
    /// The NAR is being fetched. `object` counts as one of its readers.
    InTransfer {
        nar: Arc<PartialNar>,
        object: BoxFuture<'static, Result<Object, UpstreamError>>,
    },
}

impl Requested {
    fn in_transfer(nar: Arc<PartialNar>) -> Self {
        Self::InTransfer { object: nar.object().boxed(), nar }
    }
}

/// The maximum size of a compressed NAR with `nar_size` bytes before compression. Every format stores
/// incompressible blocks with a small header.
fn max_file_size(nar_size: u64) -> u64 {
    nar_size.saturating_add(nar_size / 8).saturating_add(1 << 20)
}

/// Ends a fetch when it is dropped, even after a panic, so that its readers are notified.
struct FetchGuard<'a> {
    upstreams: &'a Upstreams,
    name: NarName,
    growing: Arc<PartialNar>,
    right: Option<u64>,
}

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        self.growing.ended(self.right);
        self.upstreams.fetches().remove(&self.name);
    }
}
