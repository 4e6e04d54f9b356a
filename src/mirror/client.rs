//! Requests to one upstream.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{self, HeaderMap};
use reqwest::{Certificate, Method, Proxy, StatusCode, Url};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tracing::{info, warn};

use super::breaker::{CircuitBreaker, CircuitChange};
use super::error::UpstreamFailure;
use super::expiring::ExpiringCache;
use super::redirects::RedirectPolicy;
use crate::config::{Login, Upstream, authorities};
use crate::metrics::{Metrics, UpstreamCounters};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, PublicKey};
use crate::store::Content;

/// The time limit for establishing a connection. The timeout of the upstream may be shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of retries on connections that the upstream has closed.
const MAX_STALE_CONNECTIONS: usize = 2;

/// The maximum number of concurrent requests to one upstream.
const MAX_REQUESTS: usize = 64;

/// The number of bad NARs that are remembered for each upstream.
const MAX_BAD_NARS: usize = 1024;

/// The size in bytes up to which the number of responses in memory is not limited.
const SMALL_RESPONSE: usize = 1024 * 1024;

/// The client of one upstream.
pub(super) struct UpstreamClient {
    /// The URL of the upstream without credentials, for logs.
    pub name: String,
    pub trusted_public_keys: Vec<PublicKey>,
    /// Whether objects of this upstream are stored.
    pub store: bool,
    endpoint: Endpoint,
    timeout: Duration,
    breaker: Mutex<CircuitBreaker>,
    request_permits: Semaphore,
    /// Limits the responses above [`SMALL_RESPONSE`] that are in memory at a time. All upstreams
    /// share the limit.
    large_responses: Arc<Semaphore>,
    /// NARs that failed verification, with the time until which they are not requested again.
    bad_nars: ExpiringCache<NarName, ()>,
    /// Whether status 403 means absence, as in S3 if the client may not list the bucket.
    forbidden_means_absent: OnceCell<bool>,
    counters: UpstreamCounters,
}

enum Endpoint {
    Http { client: reqwest::Client, base: Url, login: ArcSwapOption<Login>, hint: LoginHint },
    Directory(PathBuf),
}

/// The response of an upstream with an object.
pub(super) struct UpstreamResponse {
    /// The size of the complete object in bytes, if it is known.
    pub length: Option<u64>,
    /// The `Content-Encoding`.
    pub encoding: Option<String>,
    /// The bytes from the requested position.
    pub body: BoxStream<'static, io::Result<Bytes>>,
}

/// The advice for a 401, depending on the configuration.
#[derive(Default)]
struct LoginHint(AtomicBool);

impl LoginHint {
    fn set(&self, upstream: &Upstream) {
        self.0.store(upstream.lacks_password, Ordering::Relaxed);
    }

    fn text(&self, logs_in: bool) -> &'static str {
        if logs_in {
            "the credentials in NIX_STORED_UPSTREAMS or NIX_STORED_UPSTREAM_NETRC were rejected"
        } else if self.0.load(Ordering::Relaxed) {
            "the entry for it in NIX_STORED_UPSTREAM_NETRC has no password and is ignored"
        } else {
            "no credentials are configured; add an entry to the file NIX_STORED_UPSTREAM_NETRC"
        }
    }
}

impl UpstreamClient {
    pub(super) fn new(
        upstream: &Upstream,
        metrics: &Metrics,
        large_responses: Arc<Semaphore>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let endpoint = match upstream.directory() {
            Some(directory) => Endpoint::Directory(directory),
            None => Endpoint::Http {
                hint: {
                    let hint = LoginHint::default();
                    hint.set(upstream);
                    hint
                },
                client: http_client(upstream)?,
                base: upstream.url.clone(),
                login: ArcSwapOption::from(upstream.login.clone().map(Arc::new)),
            },
        };
        Ok(Self {
            name: upstream.to_string(),
            trusted_public_keys: upstream.trusted_public_keys.clone(),
            store: upstream.store,
            endpoint,
            timeout: upstream.timeout,
            breaker: Mutex::default(),
            request_permits: Semaphore::new(MAX_REQUESTS),
            large_responses,
            bad_nars: ExpiringCache::new(MAX_BAD_NARS),
            forbidden_means_absent: OnceCell::new(),
            counters: metrics.upstream(&upstream.to_string()),
        })
    }

    /// Uses the credentials in `upstream` from now on.
    pub(super) fn set_login(&self, upstream: &Upstream) {
        if let Endpoint::Http { login, hint, .. } = &self.endpoint {
            login.store(upstream.login.clone().map(Arc::new));
            hint.set(upstream);
        }
    }

    fn unauthorized(&self) -> UpstreamFailure {
        match &self.endpoint {
            Endpoint::Http { login, hint, .. } => {
                UpstreamFailure::Unauthorized(hint.text(login.load().is_some()))
            }
            Endpoint::Directory(_) => UpstreamFailure::Status(401),
        }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, CircuitBreaker> {
        // The state is consistent after every step, so a panic does not matter.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests an object under its usual name.
    pub(super) async fn get_object(
        &self,
        path: &CachePath,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        self.get(&self.location_of(path), 0).await
    }

    /// Returns the path of an object, relative to the endpoint.
    fn location_of(&self, path: &CachePath) -> String {
        match self.endpoint {
            // Of the characters in object names, only the question mark is special in a URL.
            Endpoint::Http { .. } => path.key().replace('?', "%3F"),
            Endpoint::Directory(_) => path.key(),
        }
    }

    /// Requests the object at `path` from byte `from` on. Returns `None` if the object is absent.
    pub(super) async fn get(
        &self,
        path: &str,
        from: u64,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        let _permit = self.request_permit().await?;
        let mut retry_after = None;
        let response = self.get_counted(path, from, &mut retry_after).await;
        self.record(&response, retry_after);
        response
    }

    /// Returns the bytes of an object of at most `limit` bytes, and its encoding. The request
    /// counts as successful when the complete body has arrived: an upstream that sends only headers
    /// has failed.
    pub(super) async fn get_bytes(
        &self,
        path: &CachePath,
        limit: usize,
    ) -> Result<Option<(Bytes, Option<String>)>, UpstreamFailure> {
        let _permit = self.request_permit().await?;
        let mut retry_after = None;
        let result = match self.get_counted(&self.location_of(path), 0, &mut retry_after).await {
            Ok(Some(response)) => {
                let bytes =
                    tokio::time::timeout(self.timeout, self.collect_body(response, limit)).await;
                bytes.unwrap_or(Err(UpstreamFailure::TimedOut(self.timeout))).map(Some)
            }
            Ok(None) => Ok(None),
            Err(failure) => Err(failure),
        };
        self.record(&result, retry_after);
        result
    }

    /// Collects the body of a response of at most `limit` bytes. Must be called with a timeout,
    /// because it may hold a permit for a large response.
    async fn collect_body(
        &self,
        mut response: UpstreamResponse,
        limit: usize,
    ) -> Result<(Bytes, Option<String>), UpstreamFailure> {
        let too_large =
            || UpstreamFailure::InvalidResponse(format!("larger than the limit of {limit} bytes"));
        if response.length.is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        let mut large_permit = None;
        while let Some(chunk) = response.body.next().await {
            let chunk = chunk.map_err(|error| UpstreamFailure::Connection(error.to_string()))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            if large_permit.is_none() && bytes.len() + chunk.len() > SMALL_RESPONSE {
                // The semaphore is never closed.
                large_permit = self.large_responses.acquire().await.ok();
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes.freeze(), response.encoding))
    }

    /// Returns the metadata of the object at `path`, or `None` if the object is absent.
    pub(super) async fn head(
        &self,
        path: &str,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        if let Endpoint::Directory(_) = &self.endpoint {
            return self.get(path, 0).await;
        }
        let _permit = self.request_permit().await?;
        let mut retry_after = None;
        let response = match self.send(Method::HEAD, path, 0).await {
            Ok(response) => self.head_response(path, response, &mut retry_after).await,
            Err(failure) => Err(failure),
        };
        self.record(&response, retry_after);
        response
    }

    async fn head_response(
        &self,
        path: &str,
        response: reqwest::Response,
        retry_after: &mut Option<Duration>,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        match response.status() {
            StatusCode::OK if length.is_some() => {
                let encoding = encoding(response.headers());
                let body = futures_util::stream::empty().boxed();
                Ok(Some(UpstreamResponse { length, encoding, body }))
            }
            // The upstream does not support HEAD, or omits the length. A GET has the length.
            StatusCode::OK | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                self.get_counted(path, 0, retry_after).await
            }
            _ => self.interpret_status(response, retry_after).await,
        }
    }

    /// Returns how long the circuit stays open, or `None` if it is closed.
    pub(super) fn circuit_open(&self) -> Option<Duration> {
        self.breaker().open_for(Instant::now())
    }

    /// Returns a permit for a request, unless the circuit is open.
    async fn request_permit(&self) -> Result<Option<SemaphorePermit<'_>>, UpstreamFailure> {
        if let Some(pause) = self.circuit_open() {
            self.counters.circuit_open();
            return Err(UpstreamFailure::CircuitOpen(pause));
        }
        // The semaphore is never closed.
        let permit = self.request_permits.acquire().await.ok();
        // Other requests may have failed while this one waited for its permit.
        let pause = self.breaker().time_until_permitted(Instant::now());
        pause.map_or(Ok(permit), |pause| {
            self.counters.circuit_open();
            Err(UpstreamFailure::CircuitOpen(pause))
        })
    }

    /// Records the result of a request in the metrics and the circuit breaker.
    fn record<T>(
        &self,
        response: &Result<Option<T>, UpstreamFailure>,
        retry_after: Option<Duration>,
    ) {
        match response {
            Ok(found) => {
                self.counters.answered(found.is_some());
                self.log_change(self.breaker().record_success(), "");
            }
            Err(failure) => {
                self.counters.failed();
                self.record_failure(failure, retry_after);
            }
        }
    }

    /// Marks a NAR of this upstream as bad, after it failed verification.
    pub(super) fn mark_bad(&self, name: NarName, ttl: Duration) {
        self.bad_nars.insert(name, (), ttl);
    }

    /// Fails if the NAR of this name is marked as bad.
    pub(super) fn check_not_bad(&self, name: NarName) -> Result<(), UpstreamFailure> {
        match self.bad_nars.get(&name) {
            Some(()) => Err(UpstreamFailure::InvalidResponse(format!(
                "the NAR {name} failed verification before"
            ))),
            None => Ok(()),
        }
    }

    /// Records a failure that occurred after the start of the response.
    pub(super) fn record_failure(&self, failure: &UpstreamFailure, retry_after: Option<Duration>) {
        let change = self.breaker().record_failure(Instant::now(), retry_after);
        self.log_change(change, &failure.to_string());
    }

    fn log_change(&self, change: Option<CircuitChange>, error: &str) {
        match change {
            Some(CircuitChange::Opened(pause)) => {
                self.counters.set_up(false);
                warn!(
                    upstream = %self.name,
                    error,
                    "upstream failed; circuit open for {pause:?}"
                );
            }
            Some(CircuitChange::Closed) => {
                self.counters.set_up(true);
                info!(upstream = %self.name, "upstream recovered; circuit closed");
            }
            None => {}
        }
    }

    /// Sends a GET request, and counts the received bytes.
    async fn get_counted(
        &self,
        path: &str,
        from: u64,
        retry_after: &mut Option<Duration>,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        let response = self.get_uncounted(path, from, retry_after).await?;
        Ok(response.map(|response| {
            let received = self.counters.received();
            let count = move |chunk: &Bytes| received.inc_by(chunk.len() as u64);
            UpstreamResponse { body: response.body.inspect_ok(count).boxed(), ..response }
        }))
    }

    async fn get_uncounted(
        &self,
        path: &str,
        from: u64,
        retry_after: &mut Option<Duration>,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        if let Endpoint::Directory(directory) = &self.endpoint {
            return read(directory.join(path), from).await;
        }
        let response = self.send(Method::GET, path, from).await?;
        match response.status() {
            StatusCode::OK => full_response(response, from).map(Some),
            StatusCode::PARTIAL_CONTENT if from > 0 => partial_response(response, from).map(Some),
            _ => self.interpret_status(response, retry_after).await,
        }
    }

    /// Interprets a status that is not a success. Returns `None` if the object is absent.
    async fn interpret_status(
        &self,
        response: reqwest::Response,
        retry_after: &mut Option<Duration>,
    ) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
        match response.status() {
            // As in Nix (`FileTransferError::NotFound` in `src/libstore/filetransfer.cc`).
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            StatusCode::FORBIDDEN if self.forbidden_means_absent().await => Ok(None),
            StatusCode::UNAUTHORIZED => Err(self.unauthorized()),
            status => {
                *retry_after = parse_retry_after(response.headers());
                Err(UpstreamFailure::Status(status.as_u16()))
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        from: u64,
    ) -> Result<reqwest::Response, UpstreamFailure> {
        let Endpoint::Http { client, base, login, .. } = &self.endpoint else {
            return Err(UpstreamFailure::InvalidResponse(
                "a directory does not answer HTTP requests".to_owned(),
            ));
        };
        let url =
            base.join(path).map_err(|error| UpstreamFailure::InvalidResponse(error.to_string()))?;
        let mut request = client.request(method, url);
        if let Some(login) = &*login.load() {
            request = request.basic_auth(&login.user, Some(&login.password));
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let request =
            request.build().map_err(|error| UpstreamFailure::Connection(root_cause(error)))?;
        match tokio::time::timeout(self.timeout, execute_with_retries(client, request)).await {
            Err(_) => Err(UpstreamFailure::TimedOut(self.timeout)),
            Ok(Err(error)) if error.is_timeout() => Err(UpstreamFailure::TimedOut(self.timeout)),
            Ok(Err(error)) if error.is_redirect() => {
                Err(UpstreamFailure::InvalidResponse(root_cause(error)))
            }
            Ok(Err(error)) => Err(UpstreamFailure::Connection(root_cause(error.without_url()))),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// Whether status 403 means that an object is absent. A bucket answers 403 for absent objects
    /// if the client may not list it. But 403 is also the answer to wrong credentials, which is a
    /// failure. So it means absence only if `nix-cache-info` can be read. (Nix treats both as
    /// absent.)
    async fn forbidden_means_absent(&self) -> bool {
        let probe = async || match self.send(Method::GET, "nix-cache-info", 0).await {
            Ok(response) => Ok(response.status().is_success()),
            Err(failure) => Err(failure),
        };
        self.forbidden_means_absent.get_or_try_init(probe).await.is_ok_and(|is_absent| *is_absent)
    }
}

fn http_client(upstream: &Upstream) -> Result<reqwest::Client, Box<dyn Error + Send + Sync>> {
    // Fails if the same provider has been installed before, which is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redirects = RedirectPolicy::of(&upstream.url);
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("nix-stored/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT.min(upstream.timeout))
        .read_timeout(upstream.timeout)
        .redirect(redirects.policy())
        .dns_resolver(Arc::new(redirects))
        // A `Referer` header would send the query of a presigned URL to another server.
        .referer(false)
        .no_proxy();
    if let Some(proxy) = &upstream.proxy {
        builder = builder.proxy(Proxy::all(proxy.clone())?);
    }
    // The platform verifier of rustls reads `SSL_CERT_FILE` itself.
    for authority in authorities()? {
        builder = builder.tls_certs_merge([Certificate::from_der(&authority)?]);
    }
    Ok(builder.build()?)
}

/// Sends a request, and repeats it if the reused connection was closed: the upstream may close an
/// idle connection just when the next request is sent.
async fn execute_with_retries(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> Result<reqwest::Response, reqwest::Error> {
    for _ in 0..MAX_STALE_CONNECTIONS {
        let Some(attempt) = request.try_clone() else {
            break;
        };
        match client.execute(attempt).await {
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {}
            response => return response,
        }
    }
    client.execute(request).await
}

/// Returns the innermost error, which is the most specific one.
fn root_cause(error: reqwest::Error) -> String {
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn parse_retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            date.duration_since(std::time::SystemTime::now()).ok()
        }
    }
}

fn encoding(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_ENCODING)?.to_str().ok()?;
    (value != "identity").then(|| value.to_owned())
}

fn body(response: reqwest::Response) -> BoxStream<'static, io::Result<Bytes>> {
    let bytes = response.bytes_stream();
    bytes.map_err(|error| io::Error::other(root_cause(error.without_url()))).boxed()
}

fn full_response(
    response: reqwest::Response,
    from: u64,
) -> Result<UpstreamResponse, UpstreamFailure> {
    let length = response.content_length();
    let encoding = encoding(response.headers());
    // A server without support for ranges sends the complete object. The first bytes are skipped.
    Ok(UpstreamResponse { length, encoding, body: skip(body(response), from) })
}

fn partial_response(
    response: reqwest::Response,
    from: u64,
) -> Result<UpstreamResponse, UpstreamFailure> {
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok()).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
    let start = parsed.and_then(|(range, _)| range.split_once('-')?.0.parse::<u64>().ok());
    if start != Some(from) {
        return Err(UpstreamFailure::InvalidResponse(format!(
            "Content-Range “{range}” for a range from {from}"
        )));
    }
    let length = parsed.and_then(|(_, length)| length.parse().ok());
    let encoding = encoding(response.headers());
    Ok(UpstreamResponse { length, encoding, body: body(response) })
}

/// Skips the first `count` bytes of a body.
fn skip(
    body: BoxStream<'static, io::Result<Bytes>>,
    count: u64,
) -> BoxStream<'static, io::Result<Bytes>> {
    if count == 0 {
        return body;
    }
    let mut remaining = count;
    body.map_ok(move |mut chunk| {
        let skipped = remaining.min(chunk.len() as u64);
        remaining -= skipped;
        // `skipped` is at most the length of the chunk.
        chunk.split_off(skipped as usize)
    })
    .boxed()
}

/// Reads the file at `path` from byte `from` on. Returns `None` if the file is absent.
async fn read(path: PathBuf, from: u64) -> Result<Option<UpstreamResponse>, UpstreamFailure> {
    let opened = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then_some((file, metadata.len())))
    });
    let (file, length) = match opened.await.map_err(io::Error::other).and_then(|opened| opened) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(UpstreamFailure::Connection(error.to_string())),
    };
    let body = Content::File(file).into_stream(from.min(length)..length);
    Ok(Some(UpstreamResponse { length: Some(length), encoding: None, body }))
}
