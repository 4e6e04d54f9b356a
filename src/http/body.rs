//! The bodies of responses and uploads.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use http::Response;
use http_body_util::{BodyDataStream, BodyExt};
use tokio::sync::OwnedSemaphorePermit;
use tower_http::timeout::{TimeoutBody, TimeoutError};

use super::backend::Backend;
use super::budget::{ConnectionBudget, RESPONSE_CHUNK_SIZE};
use super::conn_info::ConnInfo;
use crate::cache::BodyError;
use crate::nix::CachePath;
use crate::store::read_chunk;
use crate::store::{Content, RangeRead};

/// The time without a byte after which an upload fails. The total time is not limited, because a
/// NAR can have 10 GB and the network can be slow. Nix up to 2.33 retries an upload with headers
/// and no body, and waits for ever; this timeout ends the wait.
pub(super) const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the body of a response: `range` of an object of `size` bytes. If the connection supports
/// it, the kernel sends the file.
pub(super) fn outgoing(
    content: Content,
    size: u64,
    range: Range<u64>,
    conn_info: Option<&ConnInfo>,
    source: ObjectSource,
) -> Body {
    // The range lies within the bytes, whose length is the size of the object.
    let slice = |bytes: Bytes| bytes.slice(range.start as usize..range.end as usize);
    match content {
        Content::Bytes(bytes) => Body::from(slice(bytes)),
        Content::Stream(bytes) => streamed(bytes, range, conn_info, source),
        Content::File(file) => {
            let Some(conn_info) = conn_info else {
                return read(FileReader::open(file, None, None, source), range);
            };
            let budget = conn_info.budget.clone();
            // On a multiplexed connection, the client can stop reading this response for any time.
            // So the file is closed, and opened for each chunk.
            let permit = if conn_info.multiplexed { None } else { budget.file() };
            let Some(permit) = permit else {
                return read(FileReader::closed(budget, source), range);
            };
            let mapped = match &conn_info.files {
                Some(files) => files.map(file, size),
                None => Err(file),
            };
            match mapped {
                Ok(bytes) => {
                    let bytes = PermittedBytes { bytes: slice(bytes), _permit: permit };
                    Body::from(Bytes::from_owner(bytes))
                }
                Err(file) => {
                    read(FileReader::open(file, Some(permit), Some(budget), source), range)
                }
            }
        }
    }
}

/// Marks a response (as an extension) whose body is read in chunks when it is polled, so that it
/// takes no memory before.
#[derive(Debug, Clone, Copy)]
pub struct OnDemandBody;

impl OnDemandBody {
    /// Whether the response has the mark.
    pub fn is(response: &Response<Body>) -> bool {
        response.extensions().get::<Self>().is_some()
    }
}

/// The source of an object's content, for bodies that do not keep a file or a download open.
pub(super) struct ObjectSource {
    pub backend: Arc<Backend>,
    pub path: CachePath,
    pub etag: Bytes,
}

impl ObjectSource {
    async fn content(&self) -> io::Result<Content> {
        self.backend.get_again(&self.path, &self.etag).await
    }

    async fn file(&self) -> io::Result<File> {
        match self.content().await? {
            Content::File(file) => Ok(file),
            _ => Err(io::Error::other("the object is no longer a file")),
        }
    }
}

/// The bytes of an open file, with its permit.
struct PermittedBytes {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for PermittedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A file that is read in chunks. It stays open between two chunks if the budget has a permit.
struct FileReader {
    file: Option<Arc<File>>,
    permit: Option<OwnedSemaphorePermit>,
    budget: Option<ConnectionBudget>,
    source: ObjectSource,
}

impl FileReader {
    fn open(
        file: File,
        permit: Option<OwnedSemaphorePermit>,
        budget: Option<ConnectionBudget>,
        source: ObjectSource,
    ) -> Self {
        Self { file: Some(Arc::new(file)), permit, budget, source }
    }

    fn closed(budget: ConnectionBudget, source: ObjectSource) -> Self {
        Self { file: None, permit: None, budget: Some(budget), source }
    }

    async fn chunk(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        if let Some(file) = &self.file {
            return read_chunk(Arc::clone(file), offset, len).await;
        }
        self.permit = self.budget.as_ref().and_then(ConnectionBudget::file);
        let _moment = match &self.budget {
            Some(budget) if self.permit.is_none() => Some(budget.reopened_file().await),
            _ => None,
        };
        let file = Arc::new(self.source.file().await?);
        if self.permit.is_some() {
            self.file = Some(Arc::clone(&file));
        }
        read_chunk(file, offset, len).await
    }
}

/// Returns a body that is read while it is sent.
fn read(reader: FileReader, range: Range<u64>) -> Body {
    let length = range.end - range.start;
    let chunks = stream::try_unfold((reader, range), |(mut reader, rest)| async move {
        if rest.is_empty() {
            return Ok(None);
        }
        let len = RESPONSE_CHUNK_SIZE.min(rest.end - rest.start);
        let chunk = reader.chunk(rest.start, len as usize).await?;
        Ok(Some((chunk, (reader, rest.start + len..rest.end))))
    });
    sized(chunks, length)
}

/// Returns a body that is read from another server.
fn streamed(
    bytes: Box<dyn RangeRead>,
    range: Range<u64>,
    conn_info: Option<&ConnInfo>,
    source: ObjectSource,
) -> Body {
    let length = range.end - range.start;
    let Some(conn_info) = conn_info.filter(|_| bytes.is_download()) else {
        return sized(bytes.read(range), length);
    };
    let budget = conn_info.budget.clone();
    match budget.download() {
        Some(permit) => sized(holding(permit, bytes.read(range)), length),
        None => {
            let chunks = async move {
                let permit = budget.wait_for_download().await;
                match source.content().await? {
                    Content::Stream(bytes) => Ok(holding(permit, bytes.read(range))),
                    _ => Err(io::Error::other("the object was replaced")),
                }
            };
            sized(chunks.into_stream().try_flatten(), length)
        }
    }
}

/// Returns `stream`, which holds `permit` until it is dropped.
fn holding<S: Stream + Send>(
    permit: OwnedSemaphorePermit,
    stream: S,
) -> impl Stream<Item = S::Item> {
    stream.map(move |chunk| {
        let _held = &permit;
        chunk
    })
}

/// Returns a body of a known length.
fn sized(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static, length: u64) -> Body {
    Body::new(BodyExt::boxed_unsync(sized::SizedBody::new(chunks, length)))
}

/// Returns the body of an upload as chunks. It fails after [`BODY_IDLE_TIMEOUT`] without a byte.
pub(super) fn incoming(body: Body) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin {
    let body = BodyDataStream::new(TimeoutBody::new(BODY_IDLE_TIMEOUT, body));
    let chunks = body.map_err(|error| match error.downcast::<TimeoutError>() {
        Ok(_) => BodyError::Stalled(BODY_IDLE_TIMEOUT),
        Err(error) => BodyError::CutShort(error),
    });
    chunks.boxed()
}

mod sized {
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use bytes::Bytes;
    use futures_util::Stream;
    use http_body::{Body, Frame, SizeHint};
    use pin_project_lite::pin_project;

    pin_project! {
        /// A stream with a known length, which is sent as `Content-Length`.
        pub struct SizedBody<S> {
            #[pin]
            chunks: S,
            rest: u64,
        }
    }

    impl<S> SizedBody<S> {
        pub(super) fn new(chunks: S, length: u64) -> Self {
            Self { chunks, rest: length }
        }
    }

    impl<S: Stream<Item = std::io::Result<Bytes>>> Body for SizedBody<S> {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let this = self.project();
            let chunk = ready!(this.chunks.poll_next(cx));
            if let Some(Ok(chunk)) = &chunk {
                *this.rest = this.rest.saturating_sub(chunk.len() as u64);
            }
            Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
        }

        fn is_end_stream(&self) -> bool {
            self.rest == 0
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.rest)
        }
    }
}
