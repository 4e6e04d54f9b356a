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

use super::client::UpstreamClient;
use super::error::{GetError, UpstreamError, get_error};
use super::notifying_upload::{NotifyingUpload, TemporaryUpload, warn_without_copy};
use super::partial_nar::{self, PartialNar};
use super::provisional::ProvisionalName;
use super::remote::RemotePath;
use super::resuming_body::{StartedTransfer, resuming};
use super::upstreams::Upstreams;
use crate::cache::{Cache, NarContents, NarFacts, Received, check_against_nar};
use crate::config::Verify;
use crate::ingest::{self, BATCH, Feed, PutError, Stage, TransferPermit};
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
        if let Some(partial) = running {
            return Ok(Some(Requested::in_transfer(partial)));
        }
        // The NAR may have been stored while this request waited for the lock.
        let stored_name = self.stored_name(name).await?;
        if let Some(object) = cache.store().get(&CachePath::Nar(stored_name)).await? {
            return Ok(Some(Requested::Stored(object)));
        }
        let remote = upstreams.nars.get(&name);
        let Some(started) = upstreams.request_nar(name, remote.as_deref()).await? else {
            // The upstream has removed the NAR, and probably the narinfo.
            upstreams.forget(name);
            return Ok(None);
        };
        let permit = upstreams.fetch_limit.take().await;
        let client = Arc::clone(&started.source.client);
        let staged = self.stage(name, started.size, &client).await;
        let (upload, partial) = staged.map_err(|error| get_error(error, &client.name))?;
        upstreams.fetches().insert(name, Arc::clone(&partial));
        info!(upstream = %client.name, path = %CachePath::Nar(name), "fetching a NAR");
        // The reader exists before the fetch starts: a fetch without readers may stop.
        let requested = Requested::in_transfer(Arc::clone(&partial));
        tokio::spawn(self.clone().fetch(name, started, remote, upload, partial, permit));
        Ok(Some(requested))
    }

    /// Creates the upload for a NAR, and the state that its readers share.
    ///
    /// A NAR that is not to be stored or has no final name yet is staged in a temporary file.
    async fn stage(
        &self,
        name: NarName,
        size: Option<u64>,
        client: &UpstreamClient,
    ) -> Result<(Box<dyn Upload>, Arc<PartialNar>), PutError> {
        let (store, upstream) = (Arc::clone(self.cache.store()), client.name.clone());
        let is_final = client.store && ProvisionalName::of(name).is_none();
        ingest::on_blocking_pool(move || {
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
            let partial = PartialNar::new(name, size, file, Arc::clone(&store), upstream);
            let partial = Arc::new(partial);
            let upload = NotifyingUpload::new(inner, copy, Arc::clone(&partial));
            Ok((Box::new(upload) as Box<dyn Upload>, partial))
        })
        .await
    }

    /// Returns the name under which the NAR `name` is stored.
    async fn stored_name(&self, name: NarName) -> Result<NarName, GetError> {
        match ProvisionalName::of(name) {
            Some(provisional) => Ok(self.stored_nar_of(provisional).await?.unwrap_or(name)),
            None => Ok(name),
        }
    }

    /// Returns the stored NAR that a provisional name refers to, by the narinfo of its store path.
    async fn stored_nar_of(
        &self,
        provisional: ProvisionalName,
    ) -> Result<Option<NarName>, GetError> {
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

    /// Returns the NAR that `name` refers to. For a provisional name, that is the NAR of its store
    /// path in this cache or at an upstream.
    pub(super) async fn canonical(&self, name: NarName) -> Result<NarName, GetError> {
        let Some(provisional) = ProvisionalName::of(name) else {
            return Ok(name);
        };
        if let Some(stored) = self.stored_nar_of(provisional).await? {
            return Ok(stored);
        }
        // The lookup also fills `upstreams.nars`, from which the NAR is fetched.
        let (dir, decoders) = (&self.cache.info().store_dir, self.cache.decoders());
        let remote = self.upstreams.lookup(&provisional.path, dir, decoders).await?;
        Ok(remote.and_then(|remote| provisional.nar_of(&remote.info(dir))).unwrap_or(name))
    }

    /// Waits until a NAR of an upstream is in the store. Returns false if no upstream has it.
    pub(super) async fn fetch_to_end(&self, name: NarName) -> Result<bool, GetError> {
        match self.start_or_join(name).await? {
            Some(Requested::InTransfer { nar, object: _object }) => drop(nar.wait_for_end().await),
            Some(Requested::Stored(_)) => {}
            None => return Ok(false),
        }
        Ok(self.cache.store().head(&CachePath::Nar(name)).await?.is_some())
    }

    /// Returns the metadata of a NAR of an upstream.
    pub(super) async fn head(&self, name: NarName) -> Result<Option<Metadata>, GetError> {
        let upstreams = &self.upstreams;
        let running = upstreams.fetches().get(&name).and_then(|partial| partial.metadata());
        if let Some(metadata) = running {
            return Ok(Some(metadata));
        }
        let remote = upstreams.nars.get(&name);
        let Some((is_stored, size)) = upstreams.request_nar_size(name, remote.as_deref()).await?
        else {
            return Ok(None);
        };
        // Nix sends HEAD for a NAR that it is about to upload. A NAR that is not stored here must
        // not prevent the upload.
        match size {
            _ if !is_stored => Ok(None),
            Some(size) => Ok(Some(partial_nar::metadata(name, size, SystemTime::now()))),
            // The length is known only after a complete transfer.
            None => Ok(self.get(name).await?.map(|object| object.metadata)),
        }
    }

    /// Runs a fetch until its end, and notifies the readers.
    async fn fetch(
        self,
        name: NarName,
        started: StartedTransfer,
        remote: Option<Arc<RemotePath>>,
        upload: Box<dyn Upload>,
        partial: Arc<PartialNar>,
        permit: TransferPermit,
    ) {
        let upstreams = &*self.upstreams;
        let mut guard = FetchGuard { upstreams, name, partial, verified_size: None };
        let client = Arc::clone(&started.source.client);
        let done =
            self.receive(name, started, remote.as_deref(), upload, &guard.partial, permit).await;
        if let Err(error) = &done {
            let (path, upstream) = (CachePath::Nar(name), &client.name);
            warn!(%upstream, %path, %error, "fetch of a NAR failed");
            let is_store_error = is_error_of_this_cache(error);
            let is_transfer_error = matches!(error, PutError::Body(_));
            if !is_store_error && !is_transfer_error {
                upstreams.mark_bad(&client, name);
            }
        }
        // The NAR is published before its readers are notified, so that they can read it from the
        // store.
        guard.verified_size = done.ok();
    }

    /// Receives a NAR, compares it with its narinfo, and stores both. Returns the size of the NAR
    /// file.
    async fn receive(
        &self,
        name: NarName,
        started: StartedTransfer,
        remote: Option<&RemotePath>,
        upload: Box<dyn Upload>,
        partial: &Arc<PartialNar>,
        permit: TransferPermit,
    ) -> Result<u64, PutError> {
        let (size, is_stored) = (started.size, started.source.client.store);
        let feed = Feed::new(Box::pin(resuming(started, Arc::clone(partial), is_stored)), permit);
        let info = remote.map(|remote| remote.info(&self.cache.info().store_dir));
        let limit = match (size, &info) {
            (Some(size), _) => size,
            (None, Some(info)) => max_file_size(info.nar_size),
            (None, None) => u64::MAX,
        };
        let (name, facts, size) = match (ProvisionalName::of(name), &info) {
            (Some(_), Some(info)) => {
                let extension = name.extension;
                let stage = Stage::new(upload, limit);
                let received =
                    self.cache.receive_nar(extension, None, Verify::Nar, stage, size, feed);
                self.store_under_file_hash(info, received.await?, is_stored).await?
            }
            (_, info) => {
                let info = info.clone();
                let check_narinfo = move |facts| {
                    if let (Some(info), Some(facts)) = (&info, facts) {
                        check_against_nar(info, name, facts)?;
                    }
                    Ok(is_stored)
                };
                let streamed =
                    self.cache.stream_nar(name, upload, size, limit, check_narinfo, feed).await?;
                (name, streamed.facts, streamed.size)
            }
        };
        if !is_stored {
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

    /// Compares a NAR that was received under a provisional name with its narinfo. Stores it under
    /// the name by its file hash, if `is_stored`.
    async fn store_under_file_hash(
        &self,
        info: &NarInfo,
        received: Received,
        is_stored: bool,
    ) -> Result<(NarName, Option<NarFacts>, u64), PutError> {
        let Received { name, size, contents, upload } = received;
        let path = CachePath::Nar(name);
        let not_unpacked =
            || PutError::Read { key: path.key(), source: io::ErrorKind::NotFound.into() };
        let facts = NarFacts { file_size: size, contents: contents.ok_or_else(not_unpacked)? };
        check_against_nar(info, name, facts)?;
        if let NarContents::NoDecoder(compression) = facts.contents {
            // Without a file hash only the NAR hash can verify the file, and that needs a decoder.
            return Err(UnpackError::NoDecoder(compression).into());
        }
        if is_stored {
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
            let stored = ingest::on_blocking_pool(copy).await?;
            self.cache.count(&path, stored, size);
        }
        Ok((name, Some(facts), size))
    }

    /// Stores the narinfo of a path whose NAR is already in the store, from another path or an
    /// interrupted upload: such a NAR will not be fetched, so the narinfo is stored now.
    pub(super) async fn store_narinfo_of_stored_nar(
        &self,
        remote: &Arc<RemotePath>,
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
                if !is_error_of_this_cache(&error) {
                    upstreams.mark_bad(&remote.client, remote.nar);
                }
            }
        });
        Ok(())
    }
}

/// Whether this cache failed, and not the upstream: its store failed, or a collection removed the NAR
/// meanwhile.
fn is_error_of_this_cache(error: &PutError) -> bool {
    matches!(error, PutError::Store(_) | PutError::NarMissing(_) | PutError::NarChanged(_))
}

/// A requested NAR.
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

/// The maximum size of a compressed NAR with `nar_size` bytes before compression. Every format
/// stores incompressible blocks with a small header.
fn max_file_size(nar_size: u64) -> u64 {
    nar_size.saturating_add(nar_size / 8).saturating_add(1 << 20)
}

/// Ends a fetch when it is dropped, even after a panic, so that its readers are notified.
struct FetchGuard<'a> {
    upstreams: &'a Upstreams,
    name: NarName,
    partial: Arc<PartialNar>,
    /// The size of the NAR, once the NAR is verified and stored.
    verified_size: Option<u64>,
}

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        self.partial.finish(self.verified_size);
        self.upstreams.fetches().remove(&self.name);
    }
}
