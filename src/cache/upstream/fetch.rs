//! Getting an object from the upstreams: a NAR once for everybody, side files one by one.
//!
//! A NAR goes the way of an upload: staged, hashed and unpacked as it comes in, published when it is
//! right, and its narinfo after it. When the last client that waits for it leaves, it is still
//! fetched to its end: what somebody wanted a moment ago is what somebody will want again, most
//! often the same client after a timeout. Only what is not kept is stopped then, because nobody
//! would have it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use tracing::{info, warn};

use super::client::{Client, Trouble};
use super::growing::{self, Growing};
use super::lookup::Remote;
use super::resuming::{Begun, Source, resuming, size};
use super::{UpstreamError, Upstreams};
use crate::cache::feed::{Feed, Turn};
use crate::cache::narinfo::check_against_nar;
use crate::cache::{BodyError, Cache, GetError, PutError, ingest, metadata_of};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression};
use crate::store::{Content, Metadata, Object, StoreError, Stored, Upload};

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
        told.into_iter().chain(others).collect()
    }

    /// Asks one source after the other.
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
    /// Asks one source after the other for the length of a NAR, without its bytes. Returns also whether
    /// what comes from that upstream is kept.
    async fn head(
        &self,
        name: NarName,
        remote: Option<&Remote>,
    ) -> Result<Option<(bool, u64)>, UpstreamError> {
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
        let Some(upstreams) = &self.upstreams else {
            return Ok(None);
        };
        let _lock = upstreams.beginnings.lock(name).await;
        let running = upstreams.fetches().get(&name).map(|growing| growing.object());
        if let Some(object) = running {
            return Ok(Some(object));
        }
        // It may have arrived while others were waited for.
        if let Some(object) = self.store.get(&CachePath::Nar(name)).await? {
            return Ok(Some(object));
        }
        let remote = upstreams.nars.get(&name);
        let Some(begun) = upstreams.begin(name, remote.as_deref()).await? else {
            // Its narinfo is not to be had either, then.
            upstreams.forget(name);
            return Ok(None);
        };
        let turn = upstreams.limit.take().await;
        let path = CachePath::Nar(name);
        let upload = ingest::begin(&self.store, &path, Some(begun.size)).await;
        let mut upload = upload.map_err(|error| get_error(error, &begun.source.client))?;
        let growing = Arc::new(Growing::new(name, begun.size, upload.reader()?));
        let object = growing.object();
        upstreams.fetches().insert(name, Arc::clone(&growing));
        info!("fetching {path} from {}", begun.source.client.name);
        tokio::spawn(self.clone().fetch(name, begun, remote, upload, growing, turn));
        Ok(Some(object))
    }

    /// Waits until a NAR that an upstream has is here; false if it cannot be had.
    pub(in crate::cache) fn await_nar(
        &self,
        name: NarName,
    ) -> BoxFuture<'_, Result<bool, GetError>> {
        // Boxed, because fetching ends with a narinfo, and that asks for its NAR.
        async move {
            let Some(upstreams) = &self.upstreams else {
                return Ok(false);
            };
            if self.mirror_nar(name).await?.is_none() {
                return Ok(false);
            }
            let running = upstreams.fetches().get(&name).cloned();
            if let Some(growing) = running {
                growing.end().await;
            }
            Ok(self.store.head(&CachePath::Nar(name)).await?.is_some())
        }
        .boxed()
    }

    /// What is known of a NAR that an upstream has.
    pub(in crate::cache) async fn head_nar(
        &self,
        name: NarName,
    ) -> Result<Option<Metadata>, GetError> {
        let Some(upstreams) = &self.upstreams else {
            return Ok(None);
        };
        let running = upstreams.fetches().get(&name).map(|growing| growing.metadata());
        if let Some(metadata) = running {
            return Ok(Some(metadata));
        }
        let remote = upstreams.nars.get(&name);
        let Some((kept, size)) = upstreams.head(name, remote.as_deref()).await? else {
            return Ok(None);
        };
        // A client asks for the head of a NAR when it is about to upload it. What is not kept here is
        // no reason not to.
        Ok(kept.then(|| growing::metadata(name, size, SystemTime::now())))
    }

    async fn fetch(
        self,
        name: NarName,
        begun: Begun,
        remote: Option<Arc<Remote>>,
        upload: Box<dyn Upload>,
        growing: Arc<Growing>,
        turn: Turn,
    ) {
        let Some(upstreams) = &self.upstreams else {
            return;
        };
        let mut ending = Ending { upstreams, name, growing, right: false };
        let client = Arc::clone(&begun.source.client);
        let done = self.take(name, begun, remote.as_deref(), upload, &ending.growing, turn).await;
        if let Err(error) = &done {
            warn!("{} from {} is not taken: {error}", CachePath::Nar(name), client.name);
            let is_ours = matches!(error, PutError::Store(_));
            let is_line = matches!(error, PutError::Body(_));
            if !is_ours && !is_line {
                upstreams.distrust(&client, name);
            }
        }
        // Published before it is said that it is right: who is told can have it.
        ending.right = done.is_ok();
    }

    /// Takes a NAR that arrives, and its narinfo, if they agree.
    async fn take(
        &self,
        name: NarName,
        begun: Begun,
        remote: Option<&Remote>,
        upload: Box<dyn Upload>,
        growing: &Arc<Growing>,
        turn: Turn,
    ) -> Result<(), PutError> {
        let (size, kept) = (begun.size, begun.source.client.store);
        let upload = Box::new(Told { inner: upload, growing: Arc::clone(growing) });
        let feed = Feed::new(Box::pin(resuming(begun, Arc::clone(growing), kept)), turn);
        let info = remote.map(|remote| remote.info(&self.info.store_dir));
        let agreed = move |facts| {
            if let (Some(info), Some(facts)) = (&info, facts) {
                check_against_nar(info, name, facts)?;
            }
            Ok(kept)
        };
        let facts = self.stream_nar(name, upload, Some(size), size, agreed, feed).await?.facts;
        if !kept {
            return Ok(());
        }
        if let Some(facts) = facts {
            self.remember_facts(name, facts).await;
        }
        match remote {
            Some(remote) => {
                let info = remote.info(&self.info.store_dir);
                self.mirror_narinfo(info, &remote.client.name).await
            }
            None => Ok(()),
        }
    }

    /// A path whose NAR is here already, from another path or from an upload that was given up:
    /// nobody will ask for that, so its narinfo is kept now.
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
                warn!("{} of {} is not taken: {error}", remote.store_path, remote.client.name);
                if let (Some(upstreams), false) =
                    (&cache.upstreams, matches!(error, PutError::Store(_)))
                {
                    upstreams.distrust(&remote.client, remote.nar);
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
    let trouble = Trouble::Nonsense(what.to_owned());
    UpstreamError { upstream: client.name.clone(), trouble }.into()
}

/// What went wrong with an object of an upstream.
fn get_error(error: PutError, client: &Client) -> GetError {
    match error {
        PutError::Store(error) => error.into(),
        PutError::Body(error) => {
            let trouble = Trouble::Connection(error.to_string());
            UpstreamError { upstream: client.name.clone(), trouble }.into()
        }
        error => nonsense(client, &error.to_string()),
    }
}

fn cut_short(error: io::Error) -> BodyError {
    BodyError::CutShort(error.into())
}

/// The end of a fetch, which comes even where it panics: who waits for it must hear of it.
struct Ending<'a> {
    upstreams: &'a Upstreams,
    name: NarName,
    growing: Arc<Growing>,
    right: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.growing.ended(self.right);
        self.upstreams.fetches().remove(&self.name);
    }
}

/// Tells the readers what has been staged.
struct Told {
    inner: Box<dyn Upload>,
    growing: Arc<Growing>,
}

impl Upload for Told {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.write(bytes)?;
        self.growing.written(bytes.len() as u64);
        Ok(())
    }

    fn reader(&mut self) -> Result<File, StoreError> {
        self.inner.reader()
    }

    fn set_slow(&mut self, slow: bool) -> Result<(), StoreError> {
        self.inner.set_slow(slow)
    }

    fn staged(&self) -> Result<Option<File>, StoreError> {
        self.inner.staged()
    }

    fn commit(self: Box<Self>) -> Result<Stored, StoreError> {
        self.inner.commit()
    }
}
