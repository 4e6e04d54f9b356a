//! Batches of the body of an upload, and whether the upload is slow.
//!
//! A slow body holds no shared resource: it returns its permit for a fast transfer, and its decoder
//! stops. It costs only its connection and its staged file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::BodyError;

/// The size of a batch, in bytes. Each batch wakes a thread and, if both sides share a core,
/// switches it twice: with 64 KiB an upload takes a third more CPU time.
pub(crate) const BATCH: usize = 256 * 1024;

/// A batch that is not full is handed over this long after its first bytes, because readers may
/// wait for them. For a slow body that is not worth waking a thread a hundred times a second.
const FILL_TIMEOUT: Duration = Duration::from_millis(10);
const SLOW_FILL_TIMEOUT: Duration = Duration::from_millis(200);

/// A body is slow if the daemon waits this long in total for the client, and receives less than a
/// [`BATCH`]. Waiting for the disk does not count. A slow upload continues, and is unpacked after the
/// transfer.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// A limit of concurrent large transfers. A clone is the same limit.
#[derive(Debug, Clone)]
pub(crate) struct TransferLimit {
    flowing: Arc<Semaphore>,
    /// Slow transfers. Each has an open file, so their number is limited, too: above the limit they
    /// keep their permits of `flowing`.
    slow: Arc<Semaphore>,
}

/// The permit of a transfer within a limit.
#[derive(Debug, Default)]
pub(crate) struct TransferPermit {
    limit: Option<TransferLimit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl TransferLimit {
    pub(crate) fn new(flowing: usize, slow: usize) -> Self {
        Self { flowing: Arc::new(Semaphore::new(flowing)), slow: Arc::new(Semaphore::new(slow)) }
    }

    /// Waits for a permit.
    pub(crate) async fn take(&self) -> TransferPermit {
        let mut permit = TransferPermit { limit: Some(self.clone()), permit: None };
        permit.flow().await;
        permit
    }
}

impl TransferPermit {
    /// Creates a permit for a transfer that is not limited.
    pub(crate) fn unlimited() -> Self {
        Self::default()
    }

    /// Waits for a permit of `flowing`.
    async fn flow(&mut self) {
        if let Some(limit) = &self.limit {
            // The semaphore is never closed.
            self.permit = Arc::clone(&limit.flowing).acquire_owned().await.ok();
        }
    }

    /// Exchanges the permit for one of `slow`, if there is one.
    fn slow_down(&mut self) {
        if let Some(limit) = &self.limit
            && let Ok(permit) = Arc::clone(&limit.slow).try_acquire_owned()
        {
            self.permit = Some(permit);
        }
    }

    fn end(&mut self) {
        self.permit = None;
    }
}

/// A body that is read in batches.
pub(crate) struct Feed<S> {
    body: S,
    permit: TransferPermit,
    /// The bytes since the last measurement, and the time spent waiting for them.
    received: usize,
    waited: Duration,
    is_slow: bool,
    ended: bool,
}

impl<S: Stream<Item = Result<Bytes, BodyError>> + Unpin> Feed<S> {
    pub(crate) fn new(body: S, permit: TransferPermit) -> Self {
        let (received, waited) = (0, Duration::ZERO);
        Self { body, permit, received, waited, is_slow: false, ended: false }
    }

    /// Whether the body is slow; see [`SLOW_AFTER`].
    pub(crate) fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// Returns the next batch, or `None` at the end. An empty batch only reports that the body has
    /// become slow.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Bytes>>, BodyError> {
        let mut batch = Vec::new();
        let mut length = 0;
        let mut started = None;
        while length < BATCH && !self.ended {
            let waiting = Instant::now();
            let timeout = match (started, self.is_slow) {
                (Some(started), false) => FILL_TIMEOUT.saturating_sub(waiting - started),
                (Some(started), true) => SLOW_FILL_TIMEOUT.saturating_sub(waiting - started),
                (None, false) => SLOW_AFTER.saturating_sub(self.waited),
                (None, true) => Duration::MAX,
            };
            let chunk = tokio::time::timeout(timeout, self.body.next()).await;
            let now = Instant::now();
            self.waited += now - waiting;
            match chunk {
                Ok(Some(chunk)) => {
                    let chunk = chunk?;
                    length += chunk.len();
                    batch.push(chunk);
                    started = started.or(Some(now));
                }
                Ok(None) => self.ended = true,
                Err(_) => break,
            }
        }
        if self.ended {
            self.permit.end();
            return Ok((!batch.is_empty()).then_some(batch));
        }
        self.received += length;
        self.measure().await;
        Ok(Some(batch))
    }

    async fn measure(&mut self) {
        let slow = self.waited >= SLOW_AFTER;
        if !slow && self.received < BATCH {
            return;
        }
        (self.received, self.waited) = (0, Duration::ZERO);
        match (self.is_slow, slow) {
            (false, true) => self.permit.slow_down(),
            (true, false) => self.permit.flow().await,
            _ => {}
        }
        self.is_slow = slow;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream;
    use tokio::time::sleep;

    use super::*;

    /// A body of chunks of this size, each after a pause.
    fn body(
        size: usize,
        pause: Duration,
        count: usize,
    ) -> impl Stream<Item = Result<Bytes, BodyError>> + Unpin {
        let chunk = Bytes::from(vec![7; size]);
        let chunks = stream::iter(0..count).then(move |_| {
            let chunk = chunk.clone();
            async move {
                sleep(pause).await;
                Ok(chunk)
            }
        });
        chunks.boxed()
    }

    #[tokio::test]
    async fn a_fast_body_keeps_its_permit_until_its_end() {
        let limit = TransferLimit::new(1, 1);
        let mut feed = Feed::new(body(64 * 1024, Duration::ZERO, 40), limit.take().await);
        let mut length = 0;
        while let Some(batch) = feed.next().await.unwrap() {
            length += batch.iter().map(Bytes::len).sum::<usize>();
            assert!(!feed.is_slow());
        }
        assert_eq!(length, 40 * 64 * 1024);
        assert!(limit.take().now_or_never().is_some(), "it has ended");
    }

    #[tokio::test]
    async fn a_slow_body_returns_its_permit_and_takes_it_again_when_it_becomes_fast() {
        let limit = TransferLimit::new(1, 1);
        let slow = body(1, Duration::from_millis(400), 4);
        let fast = body(BATCH, Duration::ZERO, 3);
        let mut feed = Feed::new(slow.chain(fast), limit.take().await);
        while !feed.is_slow() {
            assert!(limit.take().now_or_never().is_none());
            feed.next().await.unwrap();
        }
        // Another upload can have the permit for any time.
        let other = limit.take().now_or_never().expect("a slow body does not count");
        feed.next().await.unwrap();
        while feed.next().now_or_never().is_some() {}
        assert!(feed.is_slow());
        drop(other);
        feed.next().await.unwrap();
        assert!(!feed.is_slow());
    }

    #[tokio::test]
    async fn slow_bodies_above_the_limit_keep_their_permits() {
        let limit = TransferLimit::new(2, 1);
        let mut feeds = Vec::new();
        for _ in 0..2 {
            let mut feed = Feed::new(stream::pending(), limit.take().await);
            feed.next().await.unwrap();
            assert!(feed.is_slow());
            feeds.push(feed);
        }
        let other = limit.take().now_or_never();
        assert!(other.is_some() && limit.take().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_stalled_body_is_reported_as_slow_before_its_next_chunk() {
        let mut feed = Feed::new(stream::pending(), TransferPermit::unlimited());
        assert_eq!(feed.next().await.unwrap(), Some(Vec::new()));
        assert!(feed.is_slow());
    }
}
