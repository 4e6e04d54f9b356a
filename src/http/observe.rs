//! Every request logged once, when its answer has been sent, as a tower layer.
//!
//! Uploads, refusals and errors are logged from `info` on; successful reads and plain misses at
//! `debug`, because a busy cache would drown the journal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Level;

use super::error::HttpError;
use super::origin::{Origin, Peer};

/// Who a request is from. `observe` puts the empty slot into a request, `authorize` fills it.
#[derive(Debug, Clone)]
pub(super) struct User(Arc<str>);

type UserSlot = Arc<OnceLock<User>>;

impl User {
    pub(super) fn new(name: &str) -> Self {
        Self(name.into())
    }

    pub(super) fn tell(self, extensions: &mut Extensions) {
        if let Some(slot) = extensions.get::<UserSlot>() {
            // Filled once: there is one `authorize`.
            let _ = slot.set(self);
        }
    }
}

/// Wraps a service so that every request is logged once.
#[derive(Debug, Clone, Copy, Default)]
pub struct ObserveLayer;

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe { inner }
    }
}

/// Logs what the inner service answers.
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // Only who shows something can turn out to be somebody.
        let origin = request.extensions().get::<Origin>();
        let shown = request.headers().contains_key(AUTHORIZATION)
            || origin.is_some_and(|origin| origin.certificate.is_some());
        let peer = origin.map(|origin| origin.peer);
        let user = shown.then(UserSlot::default);
        if let Some(user) = &user {
            request.extensions_mut().insert(Arc::clone(user));
        }
        let record = Record {
            begun: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            peer,
            forwarded_for: forwarded_for(&request),
            uploaded: content_length(request.headers()),
            user,
        };
        ObserveFuture { inner: self.inner.call(request), record: Some(record) }
    }
}

fn forwarded_for<B>(request: &Request<B>) -> Option<String> {
    request.extensions().get::<Origin>().filter(|origin| origin.peer.is_local())?;
    let value = request.headers().get("x-forwarded-for")?;
    Some(value.to_str().ok()?.chars().take(200).collect())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pin_project! {
    /// The future of [`Observe`].
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        record: Option<Record>,
    }
}

impl<F, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = this.inner;
        // The last net: a broken invariant breaks one answer, and not the connection.
        let polled = catch_unwind(AssertUnwindSafe(|| inner.poll(cx)));
        let response = match polled {
            Ok(polled) => ready!(polled)?,
            Err(_) => {
                let path = this.record.as_ref().map_or("", |record| record.uri.path());
                HttpError::Panicked.into_response(path)
            }
        };
        let Some(record) = this.record.take() else {
            return Poll::Ready(Ok(response));
        };
        let error = response.extensions().get::<Arc<HttpError>>().cloned();
        let status = response.status();
        let level = level(&record.method, status);
        if !enabled(level) {
            return Poll::Ready(Ok(response));
        }
        let outcome = Outcome { record, level, status, error, sent: 0, finished: false };
        Poll::Ready(Ok(response.map(|inner| Body::new(ObserveBody { inner, outcome }))))
    }
}

/// What a request asked for.
struct Record {
    begun: Instant,
    method: Method,
    uri: Uri,
    peer: Option<Peer>,
    forwarded_for: Option<String>,
    uploaded: Option<u64>,
    user: Option<UserSlot>,
}

/// How it ended. Logged when the body of the answer has been sent or given up.
struct Outcome {
    record: Record,
    level: Level,
    status: StatusCode,
    error: Option<Arc<HttpError>>,
    sent: u64,
    finished: bool,
}

fn level(method: &Method, status: StatusCode) -> Level {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let plain = status.is_success()
        || matches!(
            status,
            StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE
        );
    match status.as_u16() {
        500.. => Level::ERROR,
        _ if reads && plain => Level::DEBUG,
        400.. if !reads => Level::WARN,
        _ => Level::INFO,
    }
}

fn enabled(level: Level) -> bool {
    level <= tracing::level_filters::LevelFilter::current()
}

impl Outcome {
    fn log(&self) {
        let record = &self.record;
        let uploads = record.method == Method::PUT;
        let message = match self.status.as_u16() {
            500.. => "failed",
            404 if !uploads => "absent",
            400.. => "refused",
            _ if !self.finished => "broken off",
            _ if uploads => "uploaded",
            _ => "served",
        };
        // The level of an event is part of its call site, so there is one for each.
        macro_rules! event {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    method = %record.method,
                    path = shortened(record.uri.path()),
                    status = self.status.as_u16(),
                    sent_bytes = self.sent,
                    received_bytes = record.uploaded.filter(|_| uploads),
                    duration_ms = record.begun.elapsed().as_micros() as f64 / 1000.0,
                    user = record.user.as_ref().and_then(|slot| slot.get()).map(|user| &*user.0),
                    client = record.peer.map(|peer| peer.to_string()),
                    forwarded_for = record.forwarded_for,
                    reason = self.error.as_deref().map(chain),
                    "{message}"
                )
            };
        }
        match self.level {
            Level::ERROR => event!(Level::ERROR),
            Level::WARN => event!(Level::WARN),
            Level::INFO => event!(Level::INFO),
            _ => event!(Level::DEBUG),
        }
    }
}

/// An error with everything that caused it, on one line.
fn chain(error: &HttpError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// A path is ASCII by now: `http::Uri` takes nothing else.
fn shortened(path: &str) -> &str {
    path.get(..300).unwrap_or(path)
}

pin_project! {
    /// Counts the bytes of an answer, and logs the request when it is through with it.
    struct ObserveBody {
        #[pin]
        inner: Body,
        outcome: Outcome,
    }

    impl PinnedDrop for ObserveBody {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // The server does not ask for the end of a body that is known to have none, and never
            // for the body of an answer to HEAD.
            this.outcome.finished |= this.inner.is_end_stream() || this.outcome.record.method == Method::HEAD;
            this.outcome.log();
        }
    }
}

impl HttpBody for ObserveBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.outcome.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Some(Err(_)) => {}
            None => this.outcome.finished = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_breaks_one_answer_only() {
        let service = tower::service_fn(|_: Request<Body>| async {
            if true {
                panic!("a broken invariant");
            }
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let answer = ObserveLayer.layer(service).oneshot(Request::new(Body::empty())).await;
        assert_eq!(answer.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
