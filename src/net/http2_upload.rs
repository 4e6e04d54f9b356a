//! The request body in HTTP/2. Its rest is discarded if the response is sent before its end.
//!
//! In HTTP/2, a server that does not want the rest of a body resets the stream with `NO_ERROR`.
//! libcurl up to version 8 treats this as an error and discards the response, and with it the
//! reason of a refusal. So the rest is read for a while: a client that has seen the response
//! soon stops sending.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::{self, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::close::{LINGER_LIMIT, LINGER_TIMEOUT};

/// The body of a request.
#[derive(Debug)]
pub(super) struct Http2Upload {
    stream: RecvStream,
    /// The number of bytes that are still expected, if the client sent a `Content-Length`.
    rest: Option<u64>,
}

impl Http2Upload {
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Self { stream, rest: length.and_then(|length| length.parse().ok()) }
    }
}

impl Body for Http2Upload {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(bytes) = ready!(self.stream.poll_data(cx)).transpose()? else {
            // Trailers, if any, are not read.
            return Poll::Ready(None);
        };
        // Reopens the flow-control window by this number of bytes.
        self.stream.flow_control().release_capacity(bytes.len())?;
        self.rest = self.rest.map(|rest| rest.saturating_sub(bytes.len() as u64));
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A request body that goes back to its [`UnreadBody`] if it is dropped before its end.
pub(super) struct ReturnedBody {
    body: Option<Http2Upload>,
    unread: UnreadBody,
}

/// Holds a request body that was dropped before its end.
#[derive(Debug, Clone, Default)]
pub(super) struct UnreadBody(Arc<Mutex<Option<Http2Upload>>>);

impl UnreadBody {
    /// Wraps `body`, so that its rest can be discarded here.
    pub(super) fn wrap(&self, body: Http2Upload) -> ReturnedBody {
        ReturnedBody { body: Some(body), unread: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Http2Upload>> {
        // A panic cannot leave the option half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads and discards the rest of the body, if any, in a task of its own. Ends after
    /// [`LINGER_TIMEOUT`] or [`LINGER_LIMIT`] bytes.
    pub(super) fn discard(&self) {
        let Some(mut body) = self.lock().take() else {
            return;
        };
        let mut rest = LINGER_LIMIT;
        let discard = async move {
            while let Some(Ok(frame)) = body.frame().await {
                rest = rest.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if rest == 0 {
                    break;
                }
            }
        };
        tokio::spawn(tokio::time::timeout(LINGER_TIMEOUT, discard));
    }
}

impl Body for ReturnedBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ReturnedBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.unread.lock() = Some(body);
        }
    }
}
