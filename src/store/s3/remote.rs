//! Reads a large object of the bucket, and resumes interrupted reads.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::GetResult;
use tracing::debug;

use super::bucket::BucketClient;
use super::retry::pause;
use crate::store::RangeRead;

/// A large object: its bytes from a running response, or a range that must be requested.
pub(super) struct RemoteObject {
    bucket: Arc<BucketClient>,
    key: String,
    size: u64,
    /// The entity tag as the server sent it. Without one, reads are not resumed.
    etag: Option<String>,
    /// The stream of all bytes, for the only reader. The mutex makes the type `Sync`.
    whole: Mutex<BoxStream<'static, io::Result<Bytes>>>,
}

impl RangeRead for RemoteObject {
    fn is_download(&self) -> bool {
        true
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let Self { bucket, key, size, etag, whole } = *self;
        let bytes = (range == (0..size))
            .then(|| whole.into_inner().unwrap_or_else(PoisonError::into_inner));
        let reading = ResumingRead { bucket, key, etag, rest: range, bytes };
        stream::try_unfold(reading, async |mut reading| {
            Ok(reading.next().await?.map(|chunk| (chunk, reading)))
        })
        .boxed()
    }
}

impl RemoteObject {
    /// Creates the object from the response `found` for `key`.
    pub(super) fn new(bucket: Arc<BucketClient>, key: String, found: GetResult) -> Self {
        let (size, etag) = (found.meta.size, found.meta.e_tag.clone());
        let bytes = found.into_stream().map(|chunk| chunk.map_err(io::Error::other));
        Self { bucket, key, size, etag, whole: Mutex::new(bytes.boxed()) }
    }
}

/// A read of a range that is resumed after an interruption.
///
/// `object_store` measures the time for its retries from the beginning of the GET, so it never
/// resumes a download that has taken a minute. Here the rest is requested with a new GET, which has
/// the full time. The number of attempts is limited, and not their time, which would also pass
/// while the client reads nothing.
struct ResumingRead {
    bucket: Arc<BucketClient>,
    key: String,
    etag: Option<String>,
    rest: Range<u64>,
    bytes: Option<BoxStream<'static, io::Result<Bytes>>>,
}

/// The maximum number of failed requests for the next chunk. Each request has its own timeout in
/// `object_store`. The second request is needed if the first one timed out because the client did not
/// read.
const FAILED_REQUESTS_LIMIT: u32 = 2;

/// The maximum number of responses that are interrupted before the next chunk, not counting the
/// first one.
const INTERRUPTED_RESPONSES_LIMIT: u32 = 2;

impl ResumingRead {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let (mut refused, mut empty) = (0, 0);
        loop {
            if self.rest.is_empty() {
                return Ok(None);
            }
            if self.bytes.is_none() {
                let (bucket, key) = (Arc::clone(&self.bucket), self.key.clone());
                let rest = bucket.read_range(&key, self.rest.clone(), self.etag.clone());
                match rest.await {
                    Ok(bytes) => self.bytes = Some(bytes),
                    Err(_) if refused + 1 < FAILED_REQUESTS_LIMIT => {
                        refused += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let error = match self.chunk().await {
                Ok(chunk) => return Ok(Some(chunk)),
                Err(error) => error,
            };
            self.bytes = None;
            if self.etag.is_none() || empty >= INTERRUPTED_RESPONSES_LIMIT {
                return Err(error);
            }
            debug!(key = self.key, from = self.rest.start, %error, "resuming an interrupted read");
            tokio::time::sleep(pause(empty)).await;
            empty += 1;
        }
    }

    /// Returns the next bytes of the current response.
    async fn chunk(&mut self) -> io::Result<Bytes> {
        let next = match &mut self.bytes {
            Some(bytes) => bytes.next().await,
            None => None,
        };
        let chunk = next.ok_or(io::ErrorKind::UnexpectedEof)??;
        if chunk.len() as u64 > self.rest.end - self.rest.start {
            return Err(io::Error::other("the server sent more than requested"));
        }
        self.rest.start += chunk.len() as u64;
        Ok(chunk)
    }
}
