//! HTTP/2, where many requests share one connection.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::activity::Sending;
use super::connection::{Answer, BUFFER, Requests};
use super::leftover::Leftover;

/// How many requests may be under way on one connection. libcurl asks for 100 at a time.
const STREAMS: u32 = 128;

/// How much of an upload may be on its way here, and how much of all uploads of a connection. An
/// upload that waits for its turn keeps what it has sent: the second is a multiple of the first, so
/// that it does not keep others from sending.
const WINDOW: u32 = 1024 * 1024;
const WINDOWS: u32 = 16 * WINDOW;

/// A client is told that the connection ends, and says that it has heard of it. One that has only
/// put the connection aside does not look, and is waited for so long.
const QUIET: Duration = Duration::from_secs(5);

/// Serves a connection until it ends, takes too long, or `draining` is cancelled and every request
/// has been answered.
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    requests: Requests,
    draining: CancellationToken,
) {
    let (activity, peer) = (Arc::clone(requests.activity()), requests.peer());
    activity.carries_many();
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(BUFFER as u32)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOWS)
            .serve_connection(TokioIo::new(io), Streams(requests))
    );
    let mut expired = pin!(activity.expired());
    let mut settled = pin!(activity.settled(QUIET));
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    info!(client = %peer, reason = %error, "lost a connection");
                }
                return;
            }
            () = &mut expired => {
                debug!(client = %peer, "closed a connection that stood still");
                return;
            }
            () = draining.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut settled, if leaving => return,
        }
    }
}

/// The requests of one connection, whose answers are counted until they have been sent.
struct Streams(Requests);

impl Service<Request<Incoming>> for Streams {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Stream;

    fn call(&self, request: Request<Incoming>) -> Stream {
        let sending = Arc::new(self.0.activity().send());
        let leftover = Leftover::default();
        let answer = self.0.answer(request.map(|body| Body::new(leftover.of(body))));
        Stream { answer, sending, leftover }
    }
}

/// The answer to one request.
struct Stream {
    answer: Answer,
    sending: Arc<Sending>,
    leftover: Leftover,
}

impl Future for Stream {
    type Output = Result<Response<Counted>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx))?;
        self.leftover.discard();
        let sending = Arc::clone(&self.sending);
        Poll::Ready(Ok(answer.map(|inner| Counted { inner, sending })))
    }
}

/// A body of which every part is known to be sent or not: it waits in queues for its turn.
struct Counted {
    inner: Body,
    sending: Arc<Sending>,
}

/// A part, which is dropped when it leaves the queue.
struct Part {
    bytes: Bytes,
    _sending: Arc<Sending>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let counted = |bytes| {
            let part = Part { bytes, _sending: Arc::clone(&self.sending) };
            Bytes::from_owner(part)
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
