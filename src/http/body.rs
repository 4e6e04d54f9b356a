//! Bodies, in and out.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::{BodyDataStream, BodyExt};
use tower_http::timeout::{TimeoutBody, TimeoutError};

use super::origin::LendFile;
use crate::cache::BodyError;
use crate::store::Content;
use crate::store::fs::read::read_chunk;

/// A body that stands still for so long is given up. Never a total time: a NAR can be 10 GB on a
/// slow line. Nix up to 2.33 retries an upload with headers and no body and waits for ever, so this
/// is also what frees it.
pub const BODY_IDLE: Duration = Duration::from_secs(60);

/// How much of a file is read at a time where it is not sent from the file itself.
const READ_CHUNK: u64 = 256 * 1024;

/// The body of an answer: `range` of an object of `size` bytes. A connection that can sends it
/// straight from its file.
pub fn outgoing(
    content: Content,
    size: u64,
    range: Range<u64>,
    files: Option<&dyn LendFile>,
) -> Body {
    // Both ends lie within the bytes, whose length is the object's size.
    let slice = |bytes: Bytes| Body::from(bytes.slice(range.start as usize..range.end as usize));
    match content {
        Content::Bytes(bytes) => slice(bytes),
        Content::Stream(bytes) => {
            let length = range.end - range.start;
            Body::new(BodyExt::boxed_unsync(sized::Sized::new(bytes.read(range), length)))
        }
        Content::File(file) => {
            let lent = match files {
                Some(files) => files.lend(file, size),
                None => Err(file),
            };
            lent.map_or_else(|file| read(file, range.clone()), slice)
        }
    }
}

/// A body that is read as it is sent.
fn read(file: File, range: Range<u64>) -> Body {
    let length = range.end - range.start;
    Body::new(BodyExt::boxed_unsync(sized::Sized::new(chunks(file, range), length)))
}

fn chunks(file: File, range: Range<u64>) -> impl Stream<Item = std::io::Result<Bytes>> {
    let file = Arc::new(file);
    stream::unfold(range, move |rest| {
        let file = Arc::clone(&file);
        async move {
            if rest.is_empty() {
                return None;
            }
            let len = READ_CHUNK.min(rest.end - rest.start);
            let chunk = read_chunk(file, rest.start, len as usize).await;
            let next = match chunk {
                Ok(_) => rest.start + len..rest.end,
                Err(_) => rest.end..rest.end,
            };
            Some((chunk, next))
        }
    })
}

/// The body of an upload as chunks; one that stands still ends in an error.
pub fn incoming(body: Body) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin {
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
        pub fn new(chunks: S, length: u64) -> Self {
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
