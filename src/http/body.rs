//! Bodies, in and out.

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
use super::budget::{ConnectionBudget, READ_CHUNK};
use super::conn_info::ConnInfo;
use crate::cache::BodyError;
use crate::nix::CachePath;
use crate::store::read_chunk;
use crate::store::{Content, RangeRead};

/// A body that stands still for so long is given up. Never a total time: a NAR can be 10 GB on a
/// slow line. Nix up to 2.33 retries an upload with headers and no body and waits for ever, so this
/// is also what frees it.
pub(super) const BODY_IDLE: Duration = Duration::from_secs(60);

/// The body of an answer: `range` of an object of `size` bytes. A connection that can sends it
/// straight from its file.
pub(super) fn outgoing(
    content: Content,
    size: u64,
    range: Range<u64>,
    origin: Option<&ConnInfo>,
    again: Again,
) -> Body {
    // Both ends lie within the bytes, whose length is the object's size.
    let slice = |bytes: Bytes| bytes.slice(range.start as usize..range.end as usize);
    match content {
        Content::Bytes(bytes) => Body::from(slice(bytes)),
        Content::Stream(bytes) => streamed(bytes, range, origin, again),
        Content::File(file) => {
            let Some(origin) = origin else {
                return read(FileReader::open(file, None, None, again), range);
            };
            let budget = origin.budget.clone();
            // Where several answers share a connection, a client may take none of this one for long:
            // then its file is opened again when the client does.
            let permit = if origin.multiplexed { None } else { budget.file() };
            let Some(permit) = permit else {
                return read(FileReader::closed(budget, again), range);
            };
            let mapped = match &origin.files {
                Some(files) => files.map(file, size),
                None => Err(file),
            };
            match mapped {
                Ok(bytes) => {
                    let bytes = Permitted { bytes: slice(bytes), _permit: permit };
                    Body::from(Bytes::from_owner(bytes))
                }
                Err(file) => read(FileReader::open(file, Some(permit), Some(budget), again), range),
            }
        }
    }
}

/// Says of an answer that its body is read when it is asked for, part by part: until then it takes no
/// memory.
#[derive(Debug, Clone, Copy)]
pub struct OnDemand;

impl OnDemand {
    /// Whether it is said of this answer.
    pub fn is(response: &Response<Body>) -> bool {
        response.extensions().get::<Self>().is_some()
    }
}

/// An object whose content is not kept while its client takes none of it.
pub(super) struct Again {
    pub backend: Arc<Backend>,
    pub path: CachePath,
    pub etag: Bytes,
}

impl Again {
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

/// The bytes of a file that is open, for which there is room.
struct Permitted {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Permitted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A file that is read chunk by chunk, and kept open in between if there is room.
struct FileReader {
    file: Option<Arc<File>>,
    permit: Option<OwnedSemaphorePermit>,
    budget: Option<ConnectionBudget>,
    again: Again,
}

impl FileReader {
    fn open(
        file: File,
        permit: Option<OwnedSemaphorePermit>,
        budget: Option<ConnectionBudget>,
        again: Again,
    ) -> Self {
        Self { file: Some(Arc::new(file)), permit, budget, again }
    }

    fn closed(budget: ConnectionBudget, again: Again) -> Self {
        Self { file: None, permit: None, budget: Some(budget), again }
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
        let file = Arc::new(self.again.file().await?);
        if self.permit.is_some() {
            self.file = Some(Arc::clone(&file));
        }
        read_chunk(file, offset, len).await
    }
}

/// A body that is read as it is sent.
fn read(reader: FileReader, range: Range<u64>) -> Body {
    let length = range.end - range.start;
    let chunks = stream::try_unfold((reader, range), |(mut reader, rest)| async move {
        if rest.is_empty() {
            return Ok(None);
        }
        let len = READ_CHUNK.min(rest.end - rest.start);
        let chunk = reader.chunk(rest.start, len as usize).await?;
        Ok(Some((chunk, (reader, rest.start + len..rest.end))))
    });
    sized(chunks, length)
}

/// A body that comes from elsewhere.
fn streamed(
    bytes: Box<dyn RangeRead>,
    range: Range<u64>,
    origin: Option<&ConnInfo>,
    again: Again,
) -> Body {
    let length = range.end - range.start;
    let Some(origin) = origin.filter(|_| bytes.is_download()) else {
        return sized(bytes.read(range), length);
    };
    let budget = origin.budget.clone();
    match budget.download() {
        Some(permit) => sized(holding(permit, bytes.read(range)), length),
        None => {
            let chunks = async move {
                let permit = budget.wait_for_download().await;
                match again.content().await? {
                    Content::Stream(bytes) => Ok(holding(permit, bytes.read(range))),
                    _ => Err(io::Error::other("the object was replaced")),
                }
            };
            sized(chunks.into_stream().try_flatten(), length)
        }
    }
}

/// A stream for which there is room.
fn holding<S: Stream + Send>(
    permit: OwnedSemaphorePermit,
    stream: S,
) -> impl Stream<Item = S::Item> {
    stream.map(move |chunk| {
        let _held = &permit;
        chunk
    })
}

/// A body of a known length.
fn sized(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static, length: u64) -> Body {
    Body::new(BodyExt::boxed_unsync(sized::Sized::new(chunks, length)))
}

/// The body of an upload as chunks; one that stands still ends in an error.
pub(super) fn incoming(body: Body) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin {
    let body = BodyDataStream::new(TimeoutBody::new(BODY_IDLE, body));
    let chunks = body.map_err(|error| match error.downcast::<TimeoutError>() {
        Ok(_) => BodyError::Stalled(BODY_IDLE),
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
        /// A stream whose length is known, so that it is sent with a `Content-Length`.
        pub struct Sized<S> {
            #[pin]
            chunks: S,
            rest: u64,
        }
    }

    impl<S> Sized<S> {
        pub(super) fn new(chunks: S, length: u64) -> Self {
            Self { chunks, rest: length }
        }
    }

    impl<S: Stream<Item = std::io::Result<Bytes>>> Body for Sized<S> {
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
