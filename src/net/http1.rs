//! HTTP/1: one request at a time.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::bodies::{Http1Upload, Outgoing};
use super::close::close;
use super::connection_timeouts::{ConnectionTimeouts, DRAIN_QUIET_PERIOD};
use super::requests::{BUFFER_SIZE, Requests, ResponseFuture};

/// Serves a connection until it ends or times out, or until `draining` is cancelled and its requests
/// have been answered.
pub(super) async fn serve<S>(stream: S, requests: Requests, draining: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (timeouts, peer) = (Arc::clone(requests.timeouts()), requests.peer());
    let mut connection = http1::Builder::new()
        .max_buf_size(BUFFER_SIZE)
        .serve_connection(TokioIo::new(stream), requests);
    let ended = {
        let mut expired = pin!(timeouts.expired());
        let mut drain = pin!(async {
            draining.cancelled().await;
            timeouts.close_after_response();
            timeouts.until_late_requests_end(DRAIN_QUIET_PERIOD).await;
        });
        let mut closing = false;
        loop {
            tokio::select! {
                biased;
                // This branch is first, so that the next response has `Connection: close`.
                () = &mut drain, if !closing => {
                    closing = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
                // This branch is after the one that polls the connection, so that a request that
                // has arrived is handled.
                () = timeouts.until_idle_close(), if !closing => {
                    closing = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = &mut expired => {
                    if timeouts.grant_write_retry() {
                        expired.set(timeouts.expired());
                        continue;
                    }
                    debug!(client = %peer, "closed an idle connection");
                    return;
                }
            }
        }
    };
    if let Err(error) = &ended {
        info!(client = %peer, reason = %error, "lost a connection, or received invalid HTTP");
    }
    let parts = connection.into_parts();
    let unread = ended.is_err() || timeouts.has_unread_body() || !parts.read_buf.is_empty();
    // On the heap, because this future is large and its use is rare.
    Box::pin(close(parts.io.into_inner(), unread)).await;
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Http1Response;

    fn call(&self, request: Request<Incoming>) -> Http1Response {
        let response = self.respond(request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::new(Http1Upload::new(body, self.timeouts())),
        }));
        Http1Response { response, timeouts: Arc::clone(self.timeouts()) }
    }
}

/// The response to a request, in HTTP/1.
pub(super) struct Http1Response {
    response: ResponseFuture,
    timeouts: Arc<ConnectionTimeouts>,
}

impl Future for Http1Response {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(Pin::new(&mut self.response).poll(cx))?;
        Poll::Ready(Ok(response.map(|body| Outgoing::wrap(body, &self.timeouts))))
    }
}
