//! Stages a large body while it arrives.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::{FutureExt, Stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::error::{BodyError, PutError};
use super::feed::Feed;
use super::pool::{joined, on_blocking_pool};
use super::stage::Stage;
use super::staging_reader::{Message, StagingReader};
use crate::metrics::Metrics;
use crate::nix::CachePath;
use crate::store::{Store, Stored, Upload};
use crate::unpack::{UnpackError, Unpacked};

/// The maximum number of batches that wait for a decoder.
const BATCHES_IN_FLIGHT: usize = 2;

/// Publishes a staged object, and records the duration.
pub(crate) fn commit(upload: Box<dyn Upload>, metrics: &Metrics) -> Result<Stored, PutError> {
    let started = Instant::now();
    let stored = upload.commit()?;
    metrics.committed(started);
    Ok(stored)
}

/// Starts the upload of an object. This happens before the body is requested, so that a full disk refuses the
/// upload while the client still waits for its `100 Continue`.
pub(crate) async fn start_upload(
    store: &Arc<Store>,
    path: &CachePath,
    size: Option<u64>,
) -> Result<Box<dyn Upload>, PutError> {
    let (store, path) = (Arc::clone(store), path.clone());
    on_blocking_pool(move || Ok(store.start_upload(&path, size)?)).await
}

/// Stages the rest of a body. While one batch is staged, the next one is gathered.
pub(crate) async fn receive(
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
        stage = on_blocking_pool(push).boxed();
    }
}

/// Stages chunks of a body.
pub(crate) fn push(mut stage: Stage, chunks: &[Bytes]) -> Result<Stage, PutError> {
    stage.push(chunks)?;
    Ok(stage)
}

/// Unpacks a body with `unpack` on a thread of the blocking pool, as long as the body is not slow.
/// `beginning` has the first bytes of the body. Returns the staged part, and the result of unpacking, or
/// `None` if unpacking was interrupted because the body became slow; then the rest of the body follows.
pub(crate) async fn unpack_while_it_flows(
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
        // The receiver is dropped only when unpacking has ended. The result of unpacking has the reason.
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
        Some(Message::Chunks(batch)) => on_blocking_pool(move || push(stage, &batch)).await?,
        Some(Message::End) | None => stage,
    };
    Ok((stage, unpacked))
}

/// Checks the announced length of a body against its actual length.
pub(crate) fn check_length(declared: Option<u64>, actual: u64) -> Result<(), PutError> {
    match declared {
        Some(declared) if declared != actual => Err(PutError::Length { declared, actual }),
        _ => Ok(()),
    }
}
