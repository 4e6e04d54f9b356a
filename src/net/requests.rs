//! Passes the requests of a connection to the application.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use tower_service::Service as _;

use super::connection_timeouts::{ConnectionTimeouts, RequestInProgress};
#[cfg(feature = "tls")]
use crate::http::ConnectionBudget;
use crate::http::{App, ConnInfo, Peer};

/// The size in bytes of the largest request head, and of the largest chunk of a request body.
pub(super) const BUFFER_SIZE: usize = 64 * 1024;

/// The requests of one connection.
pub(super) struct Requests {
    app: App,
    conn_info: ConnInfo,
    timeouts: Arc<ConnectionTimeouts>,
}

impl Requests {
    /// Creates the requests of the connection `conn_info`, which `app` handles.
    pub(super) fn new(app: App, conn_info: ConnInfo, timeouts: Arc<ConnectionTimeouts>) -> Self {
        Self { app, conn_info, timeouts }
    }

    pub(super) fn timeouts(&self) -> &Arc<ConnectionTimeouts> {
        &self.timeouts
    }

    pub(super) fn peer(&self) -> Peer {
        self.conn_info.peer
    }

    #[cfg(feature = "tls")]
    pub(super) fn budget(&self) -> &ConnectionBudget {
        &self.conn_info.budget
    }

    /// Passes a request to the application.
    pub(super) fn respond(&self, mut request: Request<Body>) -> ResponseFuture {
        let working = self.timeouts.start_request();
        request.extensions_mut().insert(self.conn_info.clone());
        ResponseFuture { inner: self.app.clone().call(request), working: Some(working) }
    }
}

/// The response to one request.
pub(super) struct ResponseFuture {
    inner: <App as tower_service::Service<Request<Body>>>::Future,
    working: Option<RequestInProgress>,
}

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(Pin::new(&mut self.inner).poll(cx))?;
        if self.working.take().is_some_and(|working| working.closes_connection()) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response))
    }
}
