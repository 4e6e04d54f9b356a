//! Reads a large object of the bucket, and resumes interrupted reads.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::GetResult;
use tracing::debug;

use super::bucket::Bucket;
use super::retry::pause;
use crate::store::RangeRead;

/// A large object: its bytes from a running response, or a range that must be requested.
pub(super) struct RemoteObject {
    bucket: Arc<Bucket>,
    key: String,
    size: u64,
    /// As the server writes it; none where it gives none, and then nothing is resumed.
    etag: Option<String>,
    /// All bytes; only one ever takes them.
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
    /// `found` under `key`.
    pub(super) fn new(bucket: Arc<Bucket>, key: String, found: GetResult) -> Self {
        let (size, etag) = (found.meta.size, found.meta.e_tag.clone());
        let bytes = found.into_stream().map(|chunk| chunk.map_err(io::Error::other));
        Self { bucket, key, size, etag, whole: Mutex::new(bytes.boxed()) }
    }
}

/// A part of an object on its way. Where it breaks off, the rest is asked for by its range.
///
/// `object_store` counts the time for its own tries from the beginning of the GET, so that a download
/// of a minute is never resumed. Here each break is followed by a GET of its own, with all the time that
/// one has. What is counted is tries and not time, which would go on while the client reads nothing.
struct ResumingRead {
    bucket: Arc<Bucket>,
    key: String,
    etag: Option<String>,
    rest: Range<u64>,
    bytes: Option<BoxStream<'static, io::Result<Bytes>>>,
}

/// How often the rest is requested without receiving a byte. Each attempt has its own timeout in
/// `object_store`; the second one is for a client that did not read during the first.
const TRIES: u32 = 2;

/// How often the answer may break off before its first byte, in addition.
const EMPTY_ANSWERS: u32 = 2;

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
                    Err(_) if refused + 1 < TRIES => {
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
            if self.etag.is_none() || empty >= EMPTY_ANSWERS {
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
