//! Serves one connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;
use tracing::{debug, info};

use super::bodies::{Outgoing, Upload};
use super::connection_limit::Slot;
use super::connection_timeouts::{ConnectionTimeouts, Working};
use super::io::ServerIo;
use super::listener::Connection;
use super::sendfile::MappedFiles;
use crate::http::{App, ConnInfo, ConnectionBudget, Peer};

/// The head of a request must fit in here, and no chunk of a body is larger.
pub const BUFFER: usize = 64 * 1024;

/// How long a client that has a connection may take to send its next request, once the daemon is
/// told to stop: who sends them one after the other gets each of them answered.
pub const QUIET: Duration = Duration::from_secs(1);

/// How long what a client still sends is thrown away after the last answer, and how much of it.
/// Closing a socket with unread bytes resets it, and the reset can overtake the answer: then the
/// client would see a broken connection instead of the reason for which its upload was refused.
pub const LINGER: Duration = Duration::from_secs(5);
pub const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// Serves one connection until it ends, takes too long, or `draining` is cancelled and the requests
/// that it is in have been answered. It holds its `slot` for as long.
pub async fn serve(
    connection: Connection,
    app: App,
    budget: ConnectionBudget,
    draining: CancellationToken,
    slot: Slot,
) {
    let peer = connection.peer;
    let activity = ConnectionTimeouts::new(slot.crowd.clone());
    slot.register(&activity);
    let files = Arc::new(MappedFiles::default());
    let metrics = Arc::clone(app.metrics());
    let _open = metrics.open();
    let io = ServerIo::new(connection.stream, Arc::clone(&activity), Arc::clone(&files), metrics);
    let origin = ConnInfo {
        peer,
        files: Some(Arc::new(files)),
        encrypted: false,
        multiplexed: false,
        budget,
        certificate: None,
    };
    #[cfg(feature = "tls")]
    if let Some(secure) = &connection.secure {
        // On the heap, because plain connections must not carry it along.
        let served = super::tls::serve(secure, io, origin, app, activity, draining);
        return Box::pin(served).await;
    }
    serve_http1(io, Requests::new(app, origin, activity), draining).await;
}

/// Serves HTTP/1 on a connection.
pub async fn serve_http1<S>(stream: S, requests: Requests, draining: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (activity, peer) = (Arc::clone(requests.activity()), requests.peer());
    let mut connection =
        http1::Builder::new().max_buf_size(BUFFER).serve_connection(TokioIo::new(stream), requests);
    let ended = {
        let mut expired = pin!(activity.expired());
        let mut drain = pin!(async {
            draining.cancelled().await;
            activity.ends();
            activity.late_requests(QUIET).await;
        });
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                // First, so that the next answer is known to be the last.
                () = &mut drain, if !leaving => {
                    leaving = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
                // After the connection was polled, so that a request that has come is seen.
                () = activity.closes_idle(), if !leaving => {
                    leaving = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = &mut expired => {
                    if activity.tries_once_more() {
                        expired.set(activity.expired());
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
    let unread = ended.is_err() || activity.has_unread() || !parts.read_buf.is_empty();
    // Boxed, because it is as large as it is rare.
    Box::pin(close(parts.io.into_inner(), unread)).await;
}

/// The requests of one connection.
pub struct Requests {
    app: App,
    origin: ConnInfo,
    activity: Arc<ConnectionTimeouts>,
}

impl Requests {
    /// Those of `origin`, which `app` answers.
    pub fn new(app: App, origin: ConnInfo, activity: Arc<ConnectionTimeouts>) -> Self {
        Self { app, origin, activity }
    }

    /// What the connection is doing.
    pub fn activity(&self) -> &Arc<ConnectionTimeouts> {
        &self.activity
    }

    /// The other end of it.
    pub fn peer(&self) -> Peer {
        self.origin.peer
    }

    /// What answers may hold.
    #[cfg(feature = "tls")]
    pub fn budget(&self) -> &ConnectionBudget {
        &self.origin.budget
    }

    /// The answer to one of them.
    pub fn answer(&self, mut request: Request<Body>) -> Answer {
        let working = self.activity.work();
        request.extensions_mut().insert(self.origin.clone());
        Answer { inner: self.app.clone().call(request), working: Some(working) }
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Http1Answer;

    fn call(&self, request: Request<Incoming>) -> Http1Answer {
        let answer = self.answer(request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::new(Upload::new(body, &self.activity)),
        }));
        Http1Answer { answer, activity: Arc::clone(&self.activity) }
    }
}

/// The answer to one request, and the sign that it is being worked on.
pub struct Answer {
    inner: <App as tower_service::Service<Request<Body>>>::Future,
    working: Option<Working>,
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = ready!(Pin::new(&mut self.inner).poll(cx))?;
        if self.working.take().is_some_and(|working| working.is_the_last()) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(answer))
    }
}

/// The answer to a request of a connection that has one at a time.
pub struct Http1Answer {
    answer: Answer,
    activity: Arc<ConnectionTimeouts>,
}

impl Future for Http1Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx))?;
        Poll::Ready(Ok(answer.map(|body| Outgoing::of(body, &self.activity))))
    }
}

/// Says that no more will come. What the client has sent and nobody has read is thrown away first.
pub async fn close(mut io: impl AsyncRead + AsyncWrite + Unpin, unread: bool) {
    let drain = async {
        io.shutdown().await?;
        if !unread {
            return Ok(());
        }
        // On the heap, because a connection that idles must not carry it along.
        let mut scratch = vec![0; 8 * 1024];
        let mut rest = LINGER_BYTES;
        while rest > 0 {
            match io.read(&mut scratch).await? {
                0 => break,
                count => rest = rest.saturating_sub(count),
            }
        }
        std::io::Result::Ok(())
    };
    // Either way the connection is over.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
