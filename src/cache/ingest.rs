//! From a body to an object, in constant memory and off the reactor.
//!
//! The body is read by the async side and handed, chunk by chunk, to a thread of the blocking pool
//! that hashes and writes. The channel between them is short: when the disk is slower than the
//! line, the socket is not read, and the client waits.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{BodyError, PutError};
use crate::nix::{CachePath, Sha256Hash};
use crate::store::{Store, Upload};

/// What a narinfo or `nix-cache-info` may have at most. A narinfo with 5,000 references has 300 KB.
const COLLECT_LIMIT: u64 = 1024 * 1024;

/// Chunks on their way from the socket to the disk. A chunk has 64 KiB at most, the size of the
/// connection's read buffer.
const CHUNKS_IN_FLIGHT: usize = 4;

/// What the reading side says to the writing side. A channel that closes without `End` is an upload
/// that was given up.
enum Message {
    Chunk(Bytes),
    End,
}

/// The whole body, for objects that are small by nature.
pub(super) async fn collect(
    declared: Option<u64>,
    mut body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
) -> Result<Bytes, PutError> {
    let too_large = PutError::TooLarge { limit: COLLECT_LIMIT };
    if declared.is_some_and(|length| length > COLLECT_LIMIT) {
        return Err(too_large);
    }
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await.transpose()? {
        if (whole.len() + chunk.len()) as u64 > COLLECT_LIMIT {
            return Err(too_large);
        }
        whole.extend_from_slice(&chunk);
    }
    check_length(declared, whole.len() as u64)?;
    Ok(whole.freeze())
}

/// Stores an object that is whole in memory.
pub(super) async fn whole(
    store: &Arc<dyn Store>,
    path: &CachePath,
    bytes: Bytes,
) -> Result<(), PutError> {
    let (store, path) = (Arc::clone(store), path.clone());
    in_the_pool(move || {
        let mut upload = store.begin(&path, Some(bytes.len() as u64))?;
        upload.write(&bytes)?;
        Ok(upload.commit()?)
    })
    .await
}

/// Stores an object of any size while it streams in. A NAR must have the hash that is its name.
pub(super) async fn stream(
    store: Arc<dyn Store>,
    path: &CachePath,
    declared: Option<u64>,
    mut body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
) -> Result<(), PutError> {
    let claim = match path {
        CachePath::Nar(name) => Some(name.file_hash),
        _ => None,
    };
    // Staged before the body is asked for: a full disk says so while the client still waits for
    // its `100 Continue`.
    let begun = path.clone();
    let upload = in_the_pool(move || Ok(store.begin(&begun, declared)?)).await?;

    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let writer = spawn_blocking(move || write(upload, receiver, declared, claim));
    loop {
        let message = match body.next().await.transpose()? {
            Some(chunk) => Message::Chunk(chunk),
            None => Message::End,
        };
        let end = matches!(message, Message::End);
        // The writer only hangs up early when it failed, and then says why below.
        if sender.send(message).await.is_err() || end {
            break;
        }
    }
    joined(writer).await
}

/// The writing side of [`stream`].
fn write(
    mut upload: Box<dyn Upload>,
    mut chunks: mpsc::Receiver<Message>,
    declared: Option<u64>,
    claim: Option<Sha256Hash>,
) -> Result<(), PutError> {
    let mut hasher = claim.map(|expected| (Sha256::new(), expected));
    let mut length = 0;
    loop {
        match chunks.blocking_recv() {
            Some(Message::Chunk(chunk)) => {
                length += chunk.len() as u64;
                if let Some((hasher, _)) = &mut hasher {
                    hasher.update(&chunk);
                }
                upload.write(&chunk)?;
            }
            Some(Message::End) => break,
            // Nobody waits for the result any more; dropping the upload aborts it.
            None => return Ok(()),
        }
    }
    check_length(declared, length)?;
    if let Some((hasher, expected)) = hasher {
        let actual = Sha256Hash::new(hasher.finalize().into());
        if actual != expected {
            return Err(PutError::FileHash { expected, actual });
        }
    }
    Ok(upload.commit()?)
}

fn check_length(declared: Option<u64>, actual: u64) -> Result<(), PutError> {
    match declared {
        Some(declared) if declared != actual => Err(PutError::Length { declared, actual }),
        _ => Ok(()),
    }
}

async fn in_the_pool<T: Send + 'static>(
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
