//! Fetches objects from upstreams: NARs once for all clients, side files one by one.
//!
//! A NAR is treated like an upload: staged, hashed and unpacked during the transfer, and published
//! after verification, followed by its narinfo. If the last client disconnects, the fetch continues
//! to its end, because the same client often returns after a timeout. Only the fetch of a NAR that
//! is not stored is stopped then.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use tracing::{info, warn};

use super::client::{Client, UpstreamFailure};
use super::lookup::Remote;
use super::notifying::{NotifyingUpload, TemporaryUpload, warn_without_copy};
use super::partial_nar::{self, PartialNar};
use super::provisional::Provisional;
use super::resuming_body::{Begun, Source, resuming, size};
use super::{UpstreamError, Upstreams};
use crate::cache::feed::{BATCH, Feed, Turn};
use crate::cache::nar::{NarContents, NarFacts, Received};
use crate::cache::narinfo::check_against_nar;
use crate::cache::stage::Stage;
use crate::cache::{BodyError, Cache, GetError, PutError, UnpackError, ingest, metadata_of};
use crate::config::Verify;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression, NarInfo};
use crate::store::{Content, Metadata, Object, StoreError, Upload};

/// What a side file may have at most: the largest logs have some 100 MB.
const SIDE_FILE_LIMIT: u64 = 1024 * 1024 * 1024;

/// What of a side file is held in memory where it is not kept.
const SIDE_FILE_IN_MEMORY: u64 = 16 * 1024 * 1024;

impl Upstreams {
    fn fetches(&self) -> std::sync::MutexGuard<'_, super::Fetches> {
        // A map is whole after every step.
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upstream that spoke of the NAR, then the others, where it has its usual name if they
    /// have it.
    fn sources(&self, name: NarName, remote: Option<&Remote>) -> VecDeque<Source> {
        let told = remote.map(|it| Source { client: Arc::clone(&it.client), url: it.url.clone() });
        let others = self
            .clients
            .iter()
            .filter(|client| remote.is_none_or(|remote| !Arc::ptr_eq(client, &remote.client)));
        let url = CachePath::Nar(name).key();
        let others = others.map(|client| Source { client: Arc::clone(client), url: url.clone() });
        // No other cache has a NAR under a provisional name of this one.
        let others = others.filter(|_| Provisional::of(name).is_none());
        told.into_iter().chain(others).collect()
    }

    /// Requests the NAR from one source after the other.
    async fn begin(
        &self,
        name: NarName,
        remote: Option<&Remote>,
    ) -> Result<Option<Begun>, UpstreamError> {
        let stated = remote.and_then(|remote| remote.file_size);
        let mut sources = self.sources(name, remote);
        let mut failed = None;
        while let Some(source) = sources.pop_front() {
            let answer = match source.client.check_trust(name) {
                Ok(()) => source.client.get(&source.url, 0).await,
                Err(trouble) => Err(trouble),
            };
            let trouble = match answer {
                Ok(None) => continue,
                Ok(Some(answer)) => match size(&answer, stated) {
                    Ok(None) if remote.is_none() => UpstreamFailure::InvalidResponse(
                        "the NAR has neither a length nor a narinfo".to_owned(),
                    ),
                    Ok(size) => return Ok(Some(Begun { source, others: sources, answer, size })),
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            let upstream = source.client.name.clone();
            failed.get_or_insert(UpstreamError { upstream, trouble });
        }
        failed.map_or(Ok(None), Err)
    }
}

impl Upstreams {
    /// Requests the length of a NAR from one source after the other. Returns also whether objects
    /// of that upstream are stored.
    async fn head(
        &self,
        name: NarName,
        remote: Option<&Remote>,
    ) -> Result<Option<(bool, Option<u64>)>, UpstreamError> {
        let stated = remote.and_then(|remote| remote.file_size);
        let mut failed = None;
        for source in self.sources(name, remote) {
            let answer = match source.client.check_trust(name) {
                Ok(()) => source.client.head(&source.url).await,
                Err(trouble) => Err(trouble),
            };
            let trouble = match answer {
                Ok(None) => continue,
                Ok(Some(answer)) => match size(&answer, stated) {
                    Ok(size) => return Ok(Some((source.client.store, size))),
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            let upstream = source.client.name.clone();
            failed.get_or_insert(UpstreamError { upstream, trouble });
        }
        failed.map_or(Ok(None), Err)
    }
}

impl Cache {
    /// A NAR that is not here, from the upstreams.
    pub(in crate::cache) async fn mirror_nar(
        &self,
        name: NarName,
    ) -> Result<Option<Object>, GetError> {
        match self.begin_or_join(name).await? {
            Some(Requested::Stored(object)) => Ok(Some(object)),
            Some(Requested::InTransfer { object, .. }) => Ok(Some(object.await?)),
            None => Ok(None),
        }
    }

    /// Begins to fetch a NAR, unless it is being fetched or has just come.
    async fn begin_or_join(&self, name: NarName) -> Result<Option<Requested>, GetError> {
        let Some(upstreams) = &self.upstreams else {
            return Ok(None);
        };
        let _lock = upstreams.beginnings.lock(name).await;
        let running = upstreams.fetches().get(&name).cloned();
        if let Some(growing) = running {
            return Ok(Some(Requested::in_transfer(growing)));
        }
        // It may have arrived while others were waited for.
        let stored = self.stored_nar(name).await?;
        if let Some(object) = self.store.get(&CachePath::Nar(stored)).await? {
            return Ok(Some(Requested::Stored(object)));
        }
        let remote = upstreams.nars.get(&name);
        let Some(begun) = upstreams.begin(name, remote.as_deref()).await? else {
            // Its narinfo is not to be had either, then.
            upstreams.forget(name);
            return Ok(None);
        };
        let turn = upstreams.limit.take().await;
        let client = Arc::clone(&begun.source.client);
        let staged = self.stage(name, begun.size, &client).await;
        let (upload, growing) = staged.map_err(|error| get_error(error, &client))?;
        upstreams.fetches().insert(name, Arc::clone(&growing));
        info!(upstream = %client.name, path = %CachePath::Nar(name), "fetching a NAR");
        // The reader exists before the fetch starts: a fetch without readers may stop.
        let requested = Requested::in_transfer(Arc::clone(&growing));
        tokio::spawn(self.clone().fetch(name, begun, remote, upload, growing, turn));
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
        let (store, upstream) = (Arc::clone(&self.store), client.name.clone());
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
        let Some(object) = self.find_narinfo(&path, &hash).await? else {
            return Ok(None);
        };
        let Content::Bytes(text) = object.content else {
            return Ok(None);
        };
        let info = self.parse_stored(text).await;
        Ok(info.and_then(|info| provisional.nar_of(&info)))
    }

    /// The NAR that `name` refers to. If `name` is provisional, that is the NAR of its store path, here or
    /// at an upstream.
    pub(in crate::cache) async fn resolve_nar_name(
        &self,
        name: NarName,
    ) -> Result<NarName, GetError> {
        let Some(provisional) = Provisional::of(name) else {
            return Ok(name);
        };
        if let Some(own) = self.own_nar_of(provisional).await? {
            return Ok(own);
        }
        let Some(upstreams) = &self.upstreams else {
            return Ok(name);
        };
        // The lookup also fills `upstreams.nars`, from which the NAR is fetched.
        let dir = &self.info.store_dir;
        let remote = upstreams.lookup(&provisional.path, dir, &self.decoders).await?;
        Ok(remote.and_then(|remote| provisional.nar_of(&remote.info(dir))).unwrap_or(name))
    }

    /// Waits until a NAR that an upstream has is here; false if it cannot be had.
    pub(in crate::cache) fn await_nar(
        &self,
        name: NarName,
    ) -> BoxFuture<'_, Result<bool, GetError>> {
        // Boxed, because the future is recursive: a fetch stores a narinfo, which looks up its NAR.
        async move {
            match self.begin_or_join(name).await? {
                Some(Requested::InTransfer { nar, object: _object }) => drop(nar.end().await),
                Some(Requested::Stored(_)) => {}
                None => return Ok(false),
            }
            Ok(self.store.head(&CachePath::Nar(name)).await?.is_some())
        }
        .boxed()
    }

    /// Returns the metadata of a NAR of an upstream.
    pub(in crate::cache) async fn head_nar(
        &self,
        name: NarName,
    ) -> Result<Option<Metadata>, GetError> {
        let Some(upstreams) = &self.upstreams else {
            return Ok(None);
        };
        let running = upstreams.fetches().get(&name).and_then(|growing| growing.metadata());
        if let Some(metadata) = running {
            return Ok(Some(metadata));
        }
        let remote = upstreams.nars.get(&name);
        let Some((kept, size)) = upstreams.head(name, remote.as_deref()).await? else {
            return Ok(None);
        };
        // Nix sends HEAD for a NAR that it is about to upload. A NAR that is not stored here must
        // not prevent the upload.
        match size {
            _ if !kept => Ok(None),
            Some(size) => Ok(Some(partial_nar::metadata(name, size, SystemTime::now()))),
            // To know its length takes all of it.
            None => Ok(self.mirror_nar(name).await?.map(|object| object.metadata)),
        }
    }

    async fn fetch(
        self,
        name: NarName,
        begun: Begun,
        remote: Option<Arc<Remote>>,
        upload: Box<dyn Upload>,
        growing: Arc<PartialNar>,
        turn: Turn,
    ) {
        let Some(upstreams) = &self.upstreams else {
            return;
        };
        let mut ending = FetchGuard { upstreams, name, growing, right: None };
        let client = Arc::clone(&begun.source.client);
        let done = self.take(name, begun, remote.as_deref(), upload, &ending.growing, turn).await;
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
        begun: Begun,
        remote: Option<&Remote>,
        upload: Box<dyn Upload>,
        growing: &Arc<PartialNar>,
        turn: Turn,
    ) -> Result<u64, PutError> {
        let (size, kept) = (begun.size, begun.source.client.store);
        let feed = Feed::new(Box::pin(resuming(begun, Arc::clone(growing), kept)), turn);
        let info = remote.map(|remote| remote.info(&self.info.store_dir));
        let limit = match (size, &info) {
            (Some(size), _) => size,
            (None, Some(info)) => max_file_size(info.nar_size),
            (None, None) => u64::MAX,
        };
        let (name, facts, size) = match (Provisional::of(name), &info) {
            (Some(_), Some(info)) => {
                let extension = name.extension;
                let stage = Stage::new(upload, limit);
                let received = self.receive_nar(extension, None, Verify::Nar, stage, size, feed);
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
                let streamed = self.stream_nar(name, upload, size, limit, agreed, feed).await?;
                (name, streamed.facts, streamed.size)
            }
        };
        if !kept {
            return Ok(size);
        }
        if let Some(facts) = facts {
            self.remember_facts(name, facts).await;
        }
        if let (Some(mut info), Some(remote)) = (info, remote) {
            info.url = CachePath::Nar(name).key();
            self.mirror_narinfo(info, &remote.client.name).await?;
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
            let mut stored = ingest::begin(&self.store, &path, Some(size)).await?;
            let metrics = Arc::clone(&self.metrics);
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
            self.count(&path, stored, size);
        }
        Ok((name, Some(facts), size))
    }

    /// Stores the narinfo of a path whose NAR is already in the store, from another path or an
    /// interrupted upload: such a NAR will not be fetched, so the narinfo is stored now.
    pub(in crate::cache) async fn keep_if_its_nar_is_here(
        &self,
        remote: &Arc<Remote>,
    ) -> Result<(), StoreError> {
        let nar = CachePath::Nar(remote.nar);
        if !remote.client.store || self.store.head(&nar).await?.is_none() {
            return Ok(());
        }
        let (cache, remote) = (self.clone(), Arc::clone(remote));
        tokio::spawn(async move {
            let info = remote.info(&cache.info.store_dir);
            let kept = cache.mirror_narinfo(info, &remote.client.name).await;
            if let Err(error) = kept {
                let (store_path, upstream) = (&remote.store_path, &remote.client.name);
                warn!(%upstream, %store_path, %error, "cannot store the narinfo of an upstream");
                if let (Some(upstreams), false) =
                    (&cache.upstreams, matches!(error, PutError::Store(_)))
                {
                    upstreams.mark_bad(&remote.client, remote.nar);
                }
            }
        });
        Ok(())
    }

    /// A side file that is not here, from the upstreams.
    pub(in crate::cache) async fn mirror_side_file(
        &self,
        path: &CachePath,
    ) -> Result<Option<Object>, GetError> {
        let Some(upstreams) = &self.upstreams else {
            return Ok(None);
        };
        if upstreams.is_known_absent(path) {
            return Ok(None);
        }
        let ask = |client: Arc<Client>| {
            async move {
                let answer = client.get_object(path).await?;
                Ok(answer.map(|answer| (client, answer)))
            }
            .boxed()
        };
        let found = upstreams.first(ask);
        let Some((client, answer)) = found.await? else {
            upstreams.remember_absent(path);
            return Ok(None);
        };
        let encoding = match answer.encoding.as_deref().map(str::parse) {
            None => Compression::None,
            Some(Ok(encoding)) => encoding,
            Some(Err(_)) => return Err(nonsense(&client, "an encoding that nobody knows")),
        };
        let length = answer.length;
        let feed = Feed::new(answer.body.map_err(cut_short), Turn::unlimited());
        if !client.store {
            let (store, limit) = (&self.store, SIDE_FILE_IN_MEMORY);
            let text = async {
                let text = ingest::collect(store, path, length, limit, feed).await?;
                let text = text.into_bytes(path).await?;
                ingest::decode(&self.decoders, encoding, text).await
            };
            let text = text.await.map_err(|error| get_error(error, &client))?;
            let metadata = metadata_of(&text);
            return Ok(Some(Object { metadata, content: Content::Bytes(text) }));
        }
        let limit = SIDE_FILE_LIMIT;
        ingest::side_file(self, path, encoding, length, limit, feed)
            .await
            .map_err(|error| get_error(error, &client))?;
        Ok(self.store.get(path).await?)
    }
}

fn nonsense(client: &Client, what: &str) -> GetError {
    let trouble = UpstreamFailure::InvalidResponse(what.to_owned());
    UpstreamError { upstream: client.name.clone(), trouble }.into()
}

/// What went wrong with an object of an upstream.
fn get_error(error: PutError, client: &Client) -> GetError {
    match error {
        PutError::Store(error) => error.into(),
        PutError::Body(error) => {
            let trouble = UpstreamFailure::Connection(error.to_string());
            UpstreamError { upstream: client.name.clone(), trouble }.into()
        }
        error => nonsense(client, &error.to_string()),
    }
}

fn cut_short(error: io::Error) -> BodyError {
    BodyError::CutShort(error.into())
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
