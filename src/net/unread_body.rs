//! The rest of an upload that was answered before its end.
//!
//! In HTTP/2, a server that does not want the rest of a body resets the stream with `NO_ERROR`.
//! libcurl up to version 8 treats this as an error and discards the response, and with it the
//! reason of a refusal. So the rest is read for a while: a client that has seen the response
//! ends it soon.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::connection::{LINGER, LINGER_BYTES};
use super::http2::Upload;

/// A body that comes back when nobody wants to read on.
pub struct Returning {
    body: Option<Upload>,
    left: UnreadBody,
}

/// Where a body comes back to.
#[derive(Debug, Clone, Default)]
pub struct UnreadBody(Arc<Mutex<Option<Upload>>>);

impl UnreadBody {
    /// `body`, which comes back to here.
    pub fn of(&self, body: Upload) -> Returning {
        Returning { body: Some(body), left: self.clone() }
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Option<Upload>> {
        // There is one or none after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads on, if something came back, and throws away what comes.
    pub fn discard(&self) {
        let Some(mut body) = self.place().take() else {
            return;
        };
        let mut rest = LINGER_BYTES;
        let discard = async move {
            while let Some(Ok(frame)) = body.frame().await {
                rest = rest.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if rest == 0 {
                    break;
                }
            }
        };
        tokio::spawn(tokio::time::timeout(LINGER, discard));
    }
}

impl Body for Returning {
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

impl Drop for Returning {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.left.place() = Some(body);
        }
    }
}
