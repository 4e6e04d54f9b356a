//! Stores the body of an upload, in constant memory and off the reactor.
//!
//! A small body is collected and stored in one step. A large body is received by an async task, and
//! handed over in batches to the blocking pool, which hashes and stages them. While one batch is
//! staged, at most one more is gathered: if the disk is slower than the network, the socket is not
//! read and the client waits. No thread is held between two batches, except by NARs that are
//! unpacked during the transfer.
//!
//! Maximum cost of an upload: the buffer of its connection, and [`BATCH`](super::feed::BATCH) bytes
//! on either side; while it is unpacked, also [`BATCHES_IN_FLIGHT`] batches in between, and a
//! decoder.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::future::{self, BoxFuture};
use futures_util::{FutureExt, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};

use super::decode_budget::{Allowance, BOMB_RATIO, DecodeBudget};
use super::feed::Feed;
use super::stage::Stage;
use super::staging_reader::{Message, StagingReader};
use super::unpack::{self, UnpackError, Unpacked};
use super::{BodyError, Cache, PutError};
use crate::metrics::Metrics;
use crate::nix::{CachePath, Compression, narinfo};
use crate::store::{Store, StoreError, Stored, Upload};

/// The largest `nix-cache-info`, in bytes.
pub(super) const CACHE_INFO_LIMIT: u64 = 64 * 1024;

/// A body up to this length is stored in one step.
pub(super) const SMALL: u64 = 64 * 1024;

/// How many batches may wait for a decoder.
const BATCHES_IN_FLIGHT: usize = 2;

/// What a side file may become when it is decoded: JSON, and a log. The largest logs have some
/// 100 MB.
const DECODED_JSON_LIMIT: u64 = 64 << 20;
const DECODED_LOG_LIMIT: u64 = 1 << 30;

/// What becomes more than this may not become more than [`BOMB_RATIO`] times its size.
const DECODED_FLOOR: u64 = 16 << 20;

/// A complete body that is not stored yet.
pub(super) enum Collected {
    InMemory(Bytes),
    /// In a file without a name.
    OnDisk(Arc<File>, u64),
}

impl Collected {
    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::InMemory(bytes) => bytes.len() as u64,
            Self::OnDisk(_, length) => *length,
        }
    }

    /// Reads it from the beginning.
    fn reader(&self) -> Box<dyn BufRead> {
        match self {
            Self::InMemory(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Self::OnDisk(file, length) => Box::new(read_at(file, *length)),
        }
    }

    /// All of it in memory.
    pub(super) async fn into_bytes(self, path: &CachePath) -> Result<Bytes, PutError> {
        if let Self::InMemory(bytes) = self {
            return Ok(bytes);
        }
        let key = path.key();
        in_the_pool(move || {
            let mut bytes = Vec::with_capacity(self.len() as usize);
            let read = self.reader().read_to_end(&mut bytes);
            read.map_err(|source| PutError::Read { key, source })?;
            Ok(bytes.into())
        })
        .await
    }
}

/// Limits the memory and the processors that narinfos of more than [`SMALL`] bytes take.
pub(super) struct LargeNarInfos {
    memory: Arc<Semaphore>,
    parsing: Semaphore,
}

impl LargeNarInfos {
    /// The limit of the texts in memory, in MiB. A parsed narinfo takes several times the length of its
    /// text, and may wait for its NAR.
    const MEMORY: u64 = 64;

    /// The number of narinfos that are parsed at the same time. Parsing takes milliseconds per megabyte,
    /// and more threads would take processor time from other requests.
    const PARSING: usize = 2;

    /// Waits for memory for a text of `length` bytes; a small text needs none.
    pub(super) async fn reserve(&self, length: u64) -> Option<OwnedSemaphorePermit> {
        if length <= SMALL {
            return None;
        }
        let mib = length.div_ceil(1 << 20).min(Self::MEMORY);
        // The semaphore is never closed.
        Arc::clone(&self.memory).acquire_many_owned(mib as u32).await.ok()
    }

    /// Runs `parse` on a text of `length` bytes: in place if the text is small, otherwise on the blocking
    /// pool.
    pub(super) async fn parse<T: Send + 'static>(
        &self,
        length: usize,
        parse: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if length as u64 <= SMALL {
            return parse();
        }
        // The semaphore is never closed.
        let _permit = self.parsing.acquire().await.ok();
        joined(spawn_blocking(parse)).await
    }
}

impl Default for LargeNarInfos {
    fn default() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(Self::MEMORY as usize)),
            parsing: Semaphore::new(Self::PARSING),
        }
    }
}

/// Reads the first `length` bytes of a file from its beginning, wherever others are in it.
pub(super) fn read_at(file: &Arc<File>, length: u64) -> BufReader<impl Read + use<>> {
    struct ReadAt(Arc<File>, u64);
    impl Read for ReadAt {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read_at(buffer, self.1)?;
            self.1 += count as u64;
            Ok(count)
        }
    }
    BufReader::with_capacity(SMALL as usize, ReadAt(Arc::clone(file), 0).take(length))
}

/// The whole body, if it is not larger than `limit`: in memory where it is [`SMALL`], and else in a
/// file, because a client may take its time for it.
pub(super) async fn collect(
    store: &Arc<Store>,
    path: &CachePath,
    declared: Option<u64>,
    limit: u64,
    mut feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
) -> Result<Collected, PutError> {
    if declared.is_some_and(|length| length > limit) {
        return Err(PutError::TooLarge { limit });
    }
    let mut whole = BytesMut::new();
    let mut file: Option<Arc<File>> = None;
    let mut length = 0;
    while let Some(batch) = feed.next().await? {
        length += batch.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if length > limit {
            return Err(PutError::TooLarge { limit });
        }
        batch.iter().for_each(|chunk| whole.extend_from_slice(chunk));
        if length > SMALL {
            let (store, path, bytes) = (Arc::clone(store), path.clone(), whole.split().freeze());
            let begun = file.take();
            file = Some(in_the_pool(move || spool(&store, &path, declared, begun, &bytes)).await?);
        }
    }
    check_length(declared, length)?;
    Ok(match file {
        Some(file) => Collected::OnDisk(file, length),
        None => Collected::InMemory(whole.freeze()),
    })
}

/// Appends to an unnamed file, which is created if there is none yet.
fn spool(
    store: &Arc<Store>,
    path: &CachePath,
    declared: Option<u64>,
    begun: Option<Arc<File>>,
    bytes: &[u8],
) -> Result<Arc<File>, PutError> {
    let file = match begun {
        Some(file) => file,
        None => Arc::new(store.temporary_file(path, declared)?),
    };
    let written = (&*file).write_all(bytes);
    written.map_err(|error| StoreError::new("staging", &path.key(), error))?;
    Ok(file)
}

/// What `bytes` are when they are decoded, if that is not larger than [`narinfo::MAX_SIZE`].
pub(super) async fn decode(
    budget: &DecodeBudget,
    encoding: Compression,
    bytes: Bytes,
) -> Result<Bytes, PutError> {
    if encoding == Compression::None {
        return Ok(bytes);
    }
    decode_at_rest(budget, Allowance::USUAL, move |allowance| {
        let mut decoded = Vec::new();
        decoder(encoding, bytes.as_ref(), allowance)?
            .take(narinfo::MAX_SIZE + 1)
            .read_to_end(&mut decoded)
            .map_err(|source| encoding_error(encoding, source, allowance))?;
        if decoded.len() as u64 > narinfo::MAX_SIZE {
            return Err(PutError::TooLarge { limit: narinfo::MAX_SIZE });
        }
        Ok(Bytes::from(decoded))
    })
    .await
}

/// Runs `attempt` on the blocking pool, with a permit for its allowance. Where it turns out to need
/// more, it is run again with more.
pub(super) async fn decode_at_rest<T: Send + 'static>(
    budget: &DecodeBudget,
    mut allowance: Allowance,
    attempt: impl Fn(Allowance) -> Result<T, PutError> + Send + Sync + 'static,
) -> Result<T, PutError> {
    let attempt = Arc::new(attempt);
    loop {
        let (permit, attempt) = (budget.at_rest(allowance).await, Arc::clone(&attempt));
        let done = in_the_pool(move || {
            let _permit = permit;
            attempt(allowance)
        });
        match done.await {
            Err(PutError::Unpack(UnpackError::Exceeded(more))) => allowance = more,
            done => return done,
        }
    }
}

fn decoder<'a>(
    encoding: Compression,
    input: impl BufRead + 'a,
    allowance: Allowance,
) -> Result<Box<dyn Read + 'a>, PutError> {
    unpack::decoder(encoding, input, allowance).map_err(|error| match error {
        Some(source) => encoding_error(encoding, source, allowance),
        None => PutError::NoDecoder(encoding),
    })
}

fn encoding_error(encoding: Compression, source: io::Error, allowance: Allowance) -> PutError {
    match unpack::more_memory(&source, allowance) {
        Some(more) => UnpackError::Exceeded(more).into(),
        None => PutError::Encoding { encoding, source },
    }
}

/// Stores a side file of any size while it streams in; returns its length.
pub(super) async fn side_file(
    cache: &Cache,
    path: &CachePath,
    encoding: Compression,
    declared: Option<u64>,
    limit: u64,
    feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
) -> Result<(Stored, u64), PutError> {
    let metrics = Arc::clone(&cache.metrics);
    if encoding != Compression::None {
        return encoded_side_file(cache, path, encoding, declared, limit, feed).await;
    }
    if declared.is_some_and(|length| length <= SMALL) {
        let bytes = collect(&cache.store, path, declared, SMALL, feed).await?;
        let bytes = bytes.into_bytes(path).await?;
        let size = bytes.len() as u64;
        return Ok((cache.store_whole(path, bytes).await?, size));
    }
    let upload = begin(&cache.store, path, declared).await?;
    let stage = receive(Stage::new(upload, limit), feed).await?;
    let (stored, size) = in_the_pool(move || {
        let staged = stage.finish();
        check_length(declared, staged.length)?;
        Ok((commit(staged.upload, &metrics)?, staged.length))
    })
    .await?;
    cache.count(path, stored, size);
    Ok((stored, size))
}

/// Stores what a side file is when it is decoded. Decoding begins when all of it has arrived, so that
/// no decoder waits for a client.
async fn encoded_side_file(
    cache: &Cache,
    path: &CachePath,
    encoding: Compression,
    declared: Option<u64>,
    limit: u64,
    feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
) -> Result<(Stored, u64), PutError> {
    let kind_limit = match path {
        CachePath::Log(_) => DECODED_LOG_LIMIT,
        _ => DECODED_JSON_LIMIT,
    };
    if unpack::has_no_decoder(encoding) {
        return Err(PutError::NoDecoder(encoding));
    }
    let limit = limit.min(kind_limit);
    let body = collect(&cache.store, path, declared, limit, feed).await?;
    let limit = limit.min(DECODED_FLOOR.max(body.len().saturating_mul(BOMB_RATIO)));
    let (store, metrics) = (Arc::clone(&cache.store), Arc::clone(&cache.metrics));
    let key = path.clone();
    let (stored, size) = decode_at_rest(&cache.decoders, Allowance::USUAL, move |allowance| {
        let mut decoder = decoder(encoding, body.reader(), allowance)?;
        let mut upload = store.start_upload(&key, None)?;
        let mut buffer = vec![0; SMALL as usize];
        let mut length = 0;
        loop {
            let count = decoder
                .read(&mut buffer)
                .map_err(|source| encoding_error(encoding, source, allowance))?;
            if count == 0 {
                break;
            }
            length += count as u64;
            if length > limit {
                return Err(PutError::TooLarge { limit });
            }
            upload.write(&buffer[..count])?;
        }
        Ok((commit(upload, &metrics)?, length))
    })
    .await?;
    cache.count(path, stored, size);
    Ok((stored, size))
}

/// Publishes a staged object, and records the duration.
pub(super) fn commit(upload: Box<dyn Upload>, metrics: &Metrics) -> Result<Stored, PutError> {
    let begun = Instant::now();
    let stored = upload.commit()?;
    metrics.committed(begun);
    Ok(stored)
}

/// Stages an object. This happens before the body is requested, so that a full disk refuses the
/// upload while the client still waits for its `100 Continue`.
pub(super) async fn begin(
    store: &Arc<Store>,
    path: &CachePath,
    size: Option<u64>,
) -> Result<Box<dyn Upload>, PutError> {
    let (store, path) = (Arc::clone(store), path.clone());
    in_the_pool(move || Ok(store.start_upload(&path, size)?)).await
}

/// Stages the rest of a body. While one batch is staged, the next one is gathered.
pub(super) async fn receive(
    stage: Stage,
    mut feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
) -> Result<Stage, PutError> {
    let mut stage: BoxFuture<'static, Result<Stage, PutError>> = future::ok(stage).boxed();
    loop {
        let batch = feed.next().await?;
        let mut staged = stage.await?;
        let Some(batch) = batch else {
            return Ok(staged);
        };
        let slow = feed.is_slow();
        let push = move || {
            staged.set_slow(slow)?;
            push(staged, &batch)
        };
        stage = in_the_pool(push).boxed();
    }
}

/// Stages pieces of a body.
pub(super) fn push(mut stage: Stage, chunks: &[Bytes]) -> Result<Stage, PutError> {
    stage.push(chunks)?;
    Ok(stage)
}

/// Has a body unpacked by `unpack`, on a thread of the blocking pool, for as long as the body flows.
/// `beginning` is what has come of it. Returns what has been staged until then, and what came of
/// unpacking; none where that was interrupted. There may be more of the body then.
pub(super) async fn unpack_while_it_flows(
    stage: Stage,
    beginning: Bytes,
    feed: &mut Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    unpack: impl FnOnce(&mut StagingReader) -> Result<Unpacked, UnpackError> + Send + 'static,
) -> Result<(Stage, Option<Result<Unpacked, UnpackError>>), PutError> {
    let (sender, messages) = mpsc::channel(BATCHES_IN_FLIGHT);
    let work = spawn_blocking(move || {
        let mut incoming = StagingReader::new(beginning, messages, stage);
        let unpacked = unpack(&mut incoming);
        incoming.stop(unpacked)
    });
    let mut refused = None;
    while !feed.is_slow() {
        let (message, is_end) = match feed.next().await? {
            Some(batch) => (Message::Chunks(batch), false),
            None => (Message::End, true),
        };
        // The other side only hangs up when it has what it needs, or failed, and then says why.
        if let Err(error) = sender.send(message).await {
            refused = Some(error.0);
            break;
        }
        if is_end {
            break;
        }
    }
    drop(sender);
    let (stage, unpacked) = joined(work).await?;
    let stage = match refused {
        Some(Message::Chunks(batch)) => in_the_pool(move || push(stage, &batch)).await?,
        Some(Message::End) | None => stage,
    };
    Ok((stage, unpacked))
}

pub(super) fn check_length(declared: Option<u64>, actual: u64) -> Result<(), PutError> {
    match declared {
        Some(declared) if declared != actual => Err(PutError::Length { declared, actual }),
        _ => Ok(()),
    }
}

/// Runs `work` on the blocking pool. It starts before the returned future is polled.
pub(super) fn in_the_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PutError> + Send + 'static,
) -> impl Future<Output = Result<T, PutError>> {
    joined(spawn_blocking(work))
}

/// The result of work on the blocking pool; its panic is ours.
pub(super) async fn joined<T>(work: JoinHandle<T>) -> T {
    match work.await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
