//! Bodies of requests and responses that report their ends to the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::connection::BUFFER;
use super::connection_timeouts::{ConnectionTimeouts, Sending};

/// The body of a request. Its connection is told if it is given up before its end: what the client
/// has sent of the rest is then still to be read.
pub struct Upload {
    body: Incoming,
    ended: bool,
    activity: Arc<ConnectionTimeouts>,
}

impl Upload {
    pub fn new(body: Incoming, activity: &Arc<ConnectionTimeouts>) -> Self {
        Self { body, ended: false, activity: Arc::clone(activity) }
    }
}

impl HttpBody for Upload {
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

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.activity.leaves_unread();
        }
    }
}

/// The body of an answer that does not leave together with its head: until the last byte of it has
/// left, the connection is not idle.
pub struct Outgoing {
    body: Body,
    sending: Arc<Sending>,
}

/// Bytes on their way. They stay where they are, because it is by their address that a file is
/// found that is sent instead of them.
struct Leaving {
    bytes: Bytes,
    _sending: Arc<Sending>,
}

impl AsRef<[u8]> for Leaving {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Outgoing {
    /// `body`, in it if it is large.
    pub fn of(body: Body, activity: &Arc<ConnectionTimeouts>) -> Body {
        match body.size_hint().exact() {
            Some(length) if length <= BUFFER as u64 => body,
            _ => Body::new(Self { body, sending: Arc::new(activity.send()) }),
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
        let leaving = |bytes| {
            let leaving = Leaving { bytes, _sending: Arc::clone(&self.sending) };
            Bytes::from_owner(leaving)
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(leaving))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
