//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;
use tracing::{debug, info};

use super::activity::{Activity, Working};
use super::io::Watched;
use super::listener::Stream;
use super::sendfile::Lent;
use crate::http::{App, Origin, Peer};

/// The head of a request must fit in here, and no chunk of a body is larger.
const BUFFER: usize = 64 * 1024;

/// How long what a client still sends is thrown away after the last answer, and how much of it.
/// Closing a socket with unread bytes resets it, and the reset can overtake the answer: then the
/// client would see a broken connection instead of the reason for which its upload was refused.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// Serves one connection until it ends, takes too long, or `draining` is cancelled and the request
/// that it is in has been answered. `_slot` is what it holds for as long.
pub async fn serve(
    stream: Stream,
    peer: Peer,
    app: App,
    draining: CancellationToken,
    _slot: Option<OwnedSemaphorePermit>,
) {
    let activity = Activity::new();
    let lent = Arc::new(Lent::default());
    let metrics = Arc::clone(app.metrics());
    let _open = metrics.open();
    let io = Watched::new(stream, Arc::clone(&activity), Arc::clone(&lent), metrics);
    let io = TokioIo::new(io);
    let origin = Origin { peer, files: Some(Arc::new(lent)) };
    let service = Requests { app, origin, activity: Arc::clone(&activity) };
    let mut connection = http1::Builder::new().max_buf_size(BUFFER).serve_connection(io, service);

    let ended = {
        let mut expired = pin!(activity.expired());
        let mut drain = pin!(draining.cancelled());
        let mut draining = false;
        loop {
            tokio::select! {
                biased;
                ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
                () = &mut expired => {
                    debug!(client = %peer, "closed a connection that stood still");
                    return;
                }
                () = &mut drain, if !draining => {
                    draining = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = ended {
        info!(client = %peer, reason = %error, "lost a connection, or what came is not HTTP");
    }
    // Boxed, because it is as large as it is rare.
    Box::pin(linger(connection.into_parts().io.into_inner())).await;
}

/// The requests of one connection.
struct Requests {
    app: App,
    origin: Origin,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        let working = self.activity.work();
        request.extensions_mut().insert(self.origin.clone());
        let inner = self.app.clone().call(request.map(Body::new));
        Answer { inner, working: Some(working) }
    }
}

/// The answer to one request, and the sign that it is being worked on.
struct Answer {
    inner: <App as tower_service::Service<Request<Body>>>::Future,
    working: Option<Working>,
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.inner).poll(cx));
        self.working = None;
        Poll::Ready(answer)
    }
}

/// Says that no more will come, and reads on for a while.
async fn linger(mut io: Watched) {
    let drain = async {
        io.shutdown().await?;
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
