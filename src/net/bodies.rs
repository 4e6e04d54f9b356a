//! Bodies of requests and responses that report their ends to the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::connection_timeouts::{ConnectionTimeouts, ResponseInProgress};
use super::requests::BUFFER_SIZE;

/// The body of a request in HTTP/1. If it is dropped before its end, the connection must still read the
/// bytes that the client has sent.
pub(super) struct Http1Upload {
    body: Incoming,
    ended: bool,
    timeouts: Arc<ConnectionTimeouts>,
}

impl Http1Upload {
    pub(super) fn new(body: Incoming, timeouts: &Arc<ConnectionTimeouts>) -> Self {
        Self { body, ended: false, timeouts: Arc::clone(timeouts) }
    }
}

impl HttpBody for Http1Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Http1Upload {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.timeouts.record_unread_body();
        }
    }
}

/// The body of a response that is sent in several writes. The connection is not idle before the last
/// byte is sent.
pub(super) struct Outgoing {
    body: Body,
    sending: Arc<ResponseInProgress>,
}

/// Bytes that are being sent. They are not moved, because a mapped file is recognized by their address.
struct SendingBytes {
    bytes: Bytes,
    _sending: Arc<ResponseInProgress>,
}

impl AsRef<[u8]> for SendingBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Outgoing {
    /// Wraps `body`, unless it fits into one write.
    pub(super) fn wrap(body: Body, timeouts: &Arc<ConnectionTimeouts>) -> Body {
        match body.size_hint().exact() {
            Some(length) if length <= BUFFER_SIZE as u64 => body,
            _ => Body::new(Self { body, sending: Arc::new(timeouts.start_response()) }),
        }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let track = |bytes| {
            let bytes = SendingBytes { bytes, _sending: Arc::clone(&self.sending) };
            Bytes::from_owner(bytes)
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(track))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
