//! Counts and logs each request once, when its response has been sent, as a tower layer.
//!
//! Accepted uploads are logged with all fields that an audit needs. Uploads, refusals and errors
//! are logged at `info` or above. Successful reads and misses are logged at `debug`, because there
//! are too many of them for the journal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Level;

use super::call::{Answer, Call, User};
use super::conn_info::{ConnInfo, Peer};
use super::error::HttpError;
use super::metrics;
use crate::cache::UploadReceipt;
use crate::logging::with_causes;
use crate::metrics::Metrics;
use crate::nix::ObjectKind;

// The atomics of an outcome are read only when it is dropped, after the last write.
const ORDER: Ordering = Ordering::Relaxed;

/// Wraps a service so that every request is counted and logged once.
#[derive(Debug, Clone)]
pub(super) struct ObserveLayer {
    metrics: Arc<Metrics>,
}

impl ObserveLayer {
    /// Creates a layer that counts in `metrics`.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe { inner, metrics: Arc::clone(&self.metrics) }
    }
}

/// Counts and logs the responses of the inner service.
#[derive(Debug, Clone)]
pub(super) struct Observe<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Observe<S>
where
    S: Service<Call, Response = Answer>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let call = Call::from(request);
        let request = &call.request;
        let record = RequestRecord {
            started,
            kind: call.kind,
            method: request.method.clone(),
            uri: request.uri.clone(),
            peer: request.extensions.get::<ConnInfo>().map(|conn_info| conn_info.peer),
            forwarded_for: forwarded_for(request),
            uploaded: content_length(&request.headers),
            metrics: Arc::clone(&self.metrics),
        };
        ObserveFuture { inner: self.inner.call(call), record: Some(record) }
    }
}

fn forwarded_for(request: &Parts) -> Option<String> {
    request.extensions.get::<ConnInfo>().filter(|conn_info| conn_info.peer.is_local())?;
    let value = request.headers.get("x-forwarded-for")?;
    Some(value.to_str().ok()?.chars().take(200).collect())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pin_project! {
    /// The future of [`Observe`].
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        record: Option<RequestRecord>,
    }
}

impl<F, E> Future for ObserveFuture<F>
where
    F: Future<Output = Result<Answer, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = this.inner;
        // A panic fails only this request, and not the connection.
        let polled = catch_unwind(AssertUnwindSafe(|| inner.poll(cx)));
        let answer = match polled {
            Ok(polled) => ready!(polled)?,
            Err(_) => {
                let kind = this.record.as_ref().and_then(|record| record.kind);
                Answer::failed(HttpError::Panicked, kind)
            }
        };
        let Answer { mut response, error, accepted, user } = answer;
        let Some(record) = this.record.take() else {
            return Poll::Ready(Ok(response));
        };
        set_content_length(&mut response);
        if record.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        let status = response.status();
        let level = level(&record.method, status);
        if !enabled(level) && is_counted_at_once(response.body()) {
            record.count(status, error.as_deref());
            return Poll::Ready(Ok(response));
        }
        let (sent, finished) = (AtomicU64::new(0), AtomicBool::new(false));
        let outcome =
            RequestOutcome { record, level, status, error, accepted, user, sent, finished };
        let outcome = Arc::new(outcome);
        Poll::Ready(Ok(response.map(|inner| Body::new(ObserveBody { inner, outcome }))))
    }
}

/// Sets `Content-Length` if the length is known. hyper would not set it in a response to HEAD,
/// whose body is removed.
fn set_content_length(response: &mut Response<Body>) {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}

/// The data of a request for metrics and log.
struct RequestRecord {
    started: Instant,
    kind: Option<ObjectKind>,
    method: Method,
    uri: Uri,
    peer: Option<Peer>,
    forwarded_for: Option<String>,
    uploaded: Option<u64>,
    metrics: Arc<Metrics>,
}

impl RequestRecord {
    fn count(&self, status: StatusCode, error: Option<&HttpError>) {
        let (method, took) = (metrics::method(&self.method), self.started.elapsed());
        self.metrics.traffic.answered(self.kind, method, status.as_u16(), took);
        if let (Some(error), true) = (error, self.method == Method::PUT) {
            self.metrics.refused.with_label_values(&[metrics::reason(error)]).inc();
        }
    }
}

/// The outcome of a request. The last bytes of the response hold it: when they have been sent or
/// discarded, it is dropped, which counts and logs the request.
struct RequestOutcome {
    record: RequestRecord,
    level: Level,
    status: StatusCode,
    error: Option<Box<HttpError>>,
    accepted: Option<Box<UploadReceipt>>,
    user: Option<User>,
    sent: AtomicU64,
    finished: AtomicBool,
}

impl Drop for RequestOutcome {
    fn drop(&mut self) {
        self.record.count(self.status, self.error.as_deref());
        if enabled(self.level) {
            self.log();
        }
    }
}

/// A response of up to this size, in bytes, is counted before it is sent, unless it is logged: then its
/// body needs no wrapper that counts.
const COUNT_AT_ONCE_LIMIT: u64 = 64 * 1024;

fn is_counted_at_once(body: &Body) -> bool {
    body.size_hint().exact().is_some_and(|length| length <= COUNT_AT_ONCE_LIMIT)
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

impl RequestOutcome {
    fn log(&self) {
        let record = &self.record;
        let uploads = record.method == Method::PUT;
        let message = match self.status.as_u16() {
            500.. => "failed",
            404 if !uploads => "absent",
            400.. => "refused",
            _ if !self.finished.load(ORDER) => "aborted",
            _ if uploads => "uploaded",
            _ => "served",
        };
        let accepted = self.accepted.as_ref();
        let user = self.user.as_ref().map(|user| &*user.0);
        // The log entry of an upload always has a user.
        let user = user.or(accepted.map(|_| "anonymous"));
        // The level and the target of an event are parts of its call site, so each combination
        // needs its own.
        macro_rules! event {
            ($target:expr, $level:expr) => {
                tracing::event!(
                    target: $target,
                    $level,
                    method = %record.method,
                    path = shortened(record.uri.path()),
                    status = self.status.as_u16(),
                    sent_bytes = self.sent.load(ORDER),
                    received_bytes = record.uploaded.filter(|_| uploads),
                    duration_ms = record.started.elapsed().as_micros() as f64 / 1000.0,
                    user,
                    client = record.peer.map(|peer| peer.to_string()),
                    forwarded_for = record.forwarded_for,
                    store_path = accepted.and_then(|it| it.store_path.as_deref()),
                    size_bytes = accepted.map(|it| it.size),
                    file_hash = accepted.and_then(|it| it.file_hash).map(tracing::field::display),
                    nar_hash = accepted.and_then(|it| it.nar_hash).map(tracing::field::display),
                    signed_by = accepted.and_then(|it| it.signed_by.as_deref()),
                    unchecked_keys = accepted.and_then(|it| it.unchecked_keys.as_deref()),
                    reason = self.error.as_ref().map(|error| with_causes(error)),
                    "{message}"
                )
            };
        }
        match self.level {
            _ if accepted.is_some() => event!("audit", Level::INFO),
            Level::ERROR => event!(module_path!(), Level::ERROR),
            Level::WARN => event!(module_path!(), Level::WARN),
            Level::INFO => event!(module_path!(), Level::INFO),
            _ => event!(module_path!(), Level::DEBUG),
        }
    }
}

/// Shortens a path. `http::Uri` accepts only ASCII, so the cut is between characters.
fn shortened(path: &str) -> &str {
    path.get(..300).unwrap_or(path)
}

pin_project! {
    /// Counts the bytes of a response.
    struct ObserveBody {
        #[pin]
        inner: Body,
        outcome: Arc<RequestOutcome>,
    }

    impl PinnedDrop for ObserveBody {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // The server does not poll a body that has reported its end, nor the body of a response
            // to HEAD.
            if this.inner.is_end_stream() || this.outcome.record.method == Method::HEAD {
                this.outcome.finished.store(true, ORDER);
            }
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
        if frame.is_none() {
            this.outcome.finished.store(true, ORDER);
        }
        let held =
            |frame: Frame<Bytes>| frame.map_data(|bytes| CountedBytes::hold(bytes, this.outcome));
        Poll::Ready(frame.map(|frame| frame.map(held)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Bytes of a response that are being sent. They can be a whole mapped file, which can take hours
/// to send.
struct CountedBytes {
    bytes: Bytes,
    /// Dropped with the last bytes of the response.
    _outcome: Arc<RequestOutcome>,
}

impl CountedBytes {
    fn hold(bytes: Bytes, outcome: &Arc<RequestOutcome>) -> Bytes {
        outcome.sent.fetch_add(bytes.len() as u64, ORDER);
        Bytes::from_owner(Self { bytes, _outcome: Arc::clone(outcome) })
    }
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_fails_only_its_own_request() {
        let service = tower::service_fn(|_: Call| async {
            if true {
                panic!("a broken invariant");
            }
            Ok::<_, Infallible>(Response::new(Body::empty()).into())
        });
        let layer = ObserveLayer::new(Metrics::new());
        let answer = layer.layer(service).oneshot(Request::new(Body::empty())).await;
        assert_eq!(answer.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
