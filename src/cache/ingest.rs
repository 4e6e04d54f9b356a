//! From a body to an object, in constant memory and off the reactor.
//!
//! A small body is collected and stored in one step. A large one is read by the async side and
//! handed, chunk by chunk, to a thread of the blocking pool that hashes it, stages it and unpacks
//! it. The channel between them is short: when the disk or the decoder is slower than the line, the
//! socket is not read, and the client waits.
//!
//! What one upload costs at most: the connection's buffer, [`BATCH`] bytes on either side of the
//! channel and [`BATCHES_IN_FLIGHT`] times as much in it; the buffer and the memory of one decoder,
//! where it is unpacked at once.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::incoming::{Incoming, Message};
use super::{BodyError, Cache, PutError, unpack};
use crate::metrics::Metrics;
use crate::nix::{CachePath, Compression, narinfo};
use crate::store::{Store, Stored, Upload};

/// The largest `nix-cache-info`, in bytes.
pub(super) const CACHE_INFO_LIMIT: u64 = 64 * 1024;

/// A body up to this length is stored in one step.
pub(super) const SMALL: u64 = 64 * 1024;

/// So much goes from the socket's side to the disk's at a time. Each handing over wakes a thread,
/// and where both sides share a core, switches it twice: 64 KiB at a time cost a third more CPU
/// time for an upload.
const BATCH: usize = 256 * 1024;

/// A slower line need not fill it: somebody may wait for what is there.
const PATIENCE: Duration = Duration::from_millis(10);

/// How many of them may wait for the disk's side.
const BATCHES_IN_FLIGHT: usize = 2;

/// What an encoded side file may become.
const DECODED_LIMIT: u64 = 4 << 30;

/// The whole body, if it is not larger than `limit`.
pub(super) async fn collect(
    declared: Option<u64>,
    limit: u64,
    mut body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
) -> Result<Bytes, PutError> {
    if declared.is_some_and(|length| length > limit) {
        return Err(PutError::TooLarge { limit });
    }
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await.transpose()? {
        if (whole.len() + chunk.len()) as u64 > limit {
            return Err(PutError::TooLarge { limit });
        }
        whole.extend_from_slice(&chunk);
    }
    check_length(declared, whole.len() as u64)?;
    Ok(whole.freeze())
}

/// What `bytes` are when they are decoded, if that is not larger than [`narinfo::MAX_SIZE`].
pub(super) async fn decode(encoding: Compression, bytes: Bytes) -> Result<Bytes, PutError> {
    if encoding == Compression::None {
        return Ok(bytes);
    }
    in_the_pool(move || {
        let mut decoded = Vec::new();
        decoder(encoding, bytes.as_ref())?
            .take(narinfo::MAX_SIZE + 1)
            .read_to_end(&mut decoded)
            .map_err(|source| PutError::Encoding { encoding, source })?;
        if decoded.len() as u64 > narinfo::MAX_SIZE {
            return Err(PutError::TooLarge { limit: narinfo::MAX_SIZE });
        }
        Ok(Bytes::from(decoded))
    })
    .await
}

fn decoder<'a>(
    encoding: Compression,
    input: impl io::BufRead + 'a,
) -> Result<Box<dyn Read + 'a>, PutError> {
    unpack::decoder(encoding, input).map_err(|error| match error {
        Some(source) => PutError::Encoding { encoding, source },
        None => PutError::NoDecoder(encoding),
    })
}

/// Stores a side file of any size while it streams in; says how long it is.
pub(super) async fn side_file(
    cache: &Cache,
    path: &CachePath,
    encoding: Compression,
    declared: Option<u64>,
    limit: u64,
    body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
) -> Result<(Stored, u64), PutError> {
    let plain = encoding == Compression::None;
    if plain && declared.is_some_and(|length| length <= SMALL) {
        let bytes = collect(declared, SMALL, body).await?;
        let size = bytes.len() as u64;
        return Ok((cache.store_whole(path, bytes).await?, size));
    }
    let upload = begin(&cache.store, path, declared.filter(|_| plain)).await?;
    let metrics = Arc::clone(&cache.metrics);
    let (stored, size) = streamed(body, move |chunks| {
        if plain {
            let arrived = Incoming::new(chunks, Some(upload), limit).arrive()?;
            check_length(declared, arrived.length)?;
            let length = arrived.length;
            return Ok((arrived.commit(&metrics)?, length));
        }
        let mut incoming = Incoming::new(chunks, None, limit);
        let decoded = decode_into(upload, encoding, &mut incoming, limit.min(DECODED_LIMIT));
        // What went wrong with the body comes before what the decoder made of it.
        check_length(declared, incoming.arrive()?.length)?;
        let (upload, length) = decoded?;
        Ok((commit(upload, &metrics)?, length))
    })
    .await?;
    cache.count(path, stored, size);
    Ok((stored, size))
}

/// Publishes what was staged, and says how long that took.
pub(super) fn commit(upload: Box<dyn Upload>, metrics: &Metrics) -> Result<Stored, PutError> {
    let begun = Instant::now();
    let stored = upload.commit()?;
    metrics.committed(begun);
    Ok(stored)
}

fn decode_into(
    mut upload: Box<dyn Upload>,
    encoding: Compression,
    input: &mut Incoming,
    limit: u64,
) -> Result<(Box<dyn Upload>, u64), PutError> {
    let mut decoder = decoder(encoding, input)?;
    let mut buffer = vec![0; SMALL as usize];
    let mut length = 0;
    loop {
        let count =
            decoder.read(&mut buffer).map_err(|source| PutError::Encoding { encoding, source })?;
        if count == 0 {
            return Ok((upload, length));
        }
        length += count as u64;
        if length > limit {
            return Err(PutError::TooLarge { limit });
        }
        upload.write(&buffer[..count])?;
    }
}

/// Stages an object. This comes before the body is asked for: a full disk says so while the client
/// still waits for its `100 Continue`.
pub(super) async fn begin(
    store: &Arc<dyn Store>,
    path: &CachePath,
    size: Option<u64>,
) -> Result<Box<dyn Upload>, PutError> {
    let (store, path) = (Arc::clone(store), path.clone());
    in_the_pool(move || Ok(store.begin(&path, size)?)).await
}

/// Runs `work` on the blocking pool and feeds it with `body`.
pub(super) async fn streamed<T: Send + 'static>(
    mut body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
    work: impl FnOnce(mpsc::Receiver<Message>) -> Result<T, PutError> + Send + 'static,
) -> Result<T, PutError> {
    let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
    let work = spawn_blocking(move || work(receiver));
    // The other side only hangs up early when it failed, and then says why below.
    loop {
        let (batch, end) = gather(&mut body).await?;
        if sender.send(Message::Chunks(batch)).await.is_err() {
            break;
        }
        if end {
            let _ = sender.send(Message::End).await;
            break;
        }
    }
    joined(work).await
}

/// The next [`BATCH`] of a body, and whether it is the last.
async fn gather(
    body: &mut (impl Stream<Item = Result<Bytes, BodyError>> + Unpin),
) -> Result<(Vec<Bytes>, bool), PutError> {
    let mut batch = Vec::new();
    let mut length = 0;
    let mut patience = pin!(tokio::time::sleep(PATIENCE));
    while length < BATCH {
        let chunk = tokio::select! {
            biased;
            chunk = body.next() => chunk.transpose()?,
            () = &mut patience, if !batch.is_empty() => break,
        };
        let Some(chunk) = chunk else {
            return Ok((batch, true));
        };
        length += chunk.len();
        batch.push(chunk);
    }
    Ok((batch, false))
}

pub(super) fn check_length(declared: Option<u64>, actual: u64) -> Result<(), PutError> {
    match declared {
        Some(declared) if declared != actual => Err(PutError::Length { declared, actual }),
        _ => Ok(()),
    }
}

/// Runs `work` on the blocking pool.
pub(super) async fn in_the_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PutError> + Send + 'static,
) -> Result<T, PutError> {
    joined(spawn_blocking(work)).await
}

/// The result of work on the blocking pool; its panic is ours.
async fn joined<T>(work: JoinHandle<T>) -> T {
    match work.await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
