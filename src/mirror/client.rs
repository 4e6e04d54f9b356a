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

use super::breaker::{Breaker, Change};
use super::error::UpstreamFailure;
use super::expiring::ExpiringCache;
use super::redirects::Redirects;
use crate::config::{Login, Upstream, authorities};
use crate::metrics::{Metrics, UpstreamCounters};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, PublicKey};
use crate::store::Content;

/// The time to connect, at most.
const CONNECT: Duration = Duration::from_secs(5);

/// How many connections may turn out to be closed before one that is not.
const STALE: usize = 2;

/// The maximum number of concurrent requests to one upstream.
const QUESTIONS: usize = 64;

/// How many false NARs of one upstream are remembered.
const BAD_NARS: usize = 1024;

/// Answers up to this length are collected by any number of questions at a time.
const SMALL_ANSWER: usize = 1024 * 1024;

/// One upstream.
pub(super) struct Client {
    /// Its URL, for logs.
    pub name: String,
    pub trusted_public_keys: Vec<PublicKey>,
    /// Whether what comes from there is kept.
    pub store: bool,
    place: Place,
    timeout: Duration,
    breaker: Mutex<Breaker>,
    questions: Semaphore,
    /// Limits the answers above [`SMALL_ANSWER`] that are collected at a time.
    large: Arc<Semaphore>,
    /// NARs that failed verification, with the time until which they are not requested again.
    bad_nars: ExpiringCache<NarName, ()>,
    /// Whether a 403 means absence, as S3 answers to clients that may not list a bucket.
    forbids_the_absent: OnceCell<bool>,
    counters: UpstreamCounters,
}

enum Place {
    Http { client: reqwest::Client, base: Url, login: ArcSwapOption<Login>, hint: Hint },
    Directory(PathBuf),
}

/// The response of an upstream with an object.
pub(super) struct Answer {
    /// The length of the whole object, if it is known.
    pub length: Option<u64>,
    /// The `Content-Encoding`.
    pub encoding: Option<String>,
    /// The bytes from the requested position.
    pub body: BoxStream<'static, io::Result<Bytes>>,
}

/// The advice for a 401, depending on the configuration.
#[derive(Default)]
struct Hint(AtomicBool);

impl Hint {
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

impl Client {
    pub(super) fn new(
        upstream: &Upstream,
        metrics: &Metrics,
        large: Arc<Semaphore>,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let place = match upstream.directory() {
            Some(directory) => Place::Directory(directory),
            None => Place::Http {
                hint: {
                    let hint = Hint::default();
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
            place,
            timeout: upstream.timeout,
            breaker: Mutex::default(),
            questions: Semaphore::new(QUESTIONS),
            large,
            bad_nars: ExpiringCache::new(BAD_NARS),
            forbids_the_absent: OnceCell::new(),
            counters: metrics.upstream(&upstream.to_string()),
        })
    }

    /// Logs in like this from now on.
    pub(super) fn log_in(&self, upstream: &Upstream) {
        if let Place::Http { login, hint, .. } = &self.place {
            login.store(upstream.login.clone().map(Arc::new));
            hint.set(upstream);
        }
    }

    fn unauthorized(&self) -> UpstreamFailure {
        match &self.place {
            Place::Http { login, hint, .. } => {
                UpstreamFailure::Unauthorized(hint.text(login.load().is_some()))
            }
            Place::Directory(_) => UpstreamFailure::Status(401),
        }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        // Its state is whole after every step.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object under its usual name.
    pub(super) async fn get_object(
        &self,
        path: &CachePath,
    ) -> Result<Option<Answer>, UpstreamFailure> {
        self.get(&self.usual(path), 0).await
    }

    fn usual(&self, path: &CachePath) -> String {
        match self.place {
            // A question mark is the only character of a name that means something in a URL.
            Place::Http { .. } => path.key().replace('?', "%3F"),
            Place::Directory(_) => path.key(),
        }
    }

    /// The object at `path` from byte `from` on; none if it is absent.
    pub(super) async fn get(
        &self,
        path: &str,
        from: u64,
    ) -> Result<Option<Answer>, UpstreamFailure> {
        let _turn = self.turn().await?;
        let mut asked = None;
        let answer = self.ask_and_count(path, from, &mut asked).await;
        self.learn(&answer, asked);
        answer
    }

    /// Returns a small object and its encoding. The request counts as successful when the whole
    /// body has arrived: an upstream that sends heads without bodies has failed.
    pub(super) async fn get_whole(
        &self,
        path: &CachePath,
        limit: usize,
    ) -> Result<Option<(Bytes, Option<String>)>, UpstreamFailure> {
        let _turn = self.turn().await?;
        let mut asked = None;
        let whole = match self.ask_and_count(&self.usual(path), 0, &mut asked).await {
            Ok(Some(answer)) => {
                let whole = tokio::time::timeout(self.timeout, self.collect(answer, limit)).await;
                whole.unwrap_or(Err(UpstreamFailure::TimedOut(self.timeout))).map(Some)
            }
            Ok(None) => Ok(None),
            Err(failure) => Err(failure),
        };
        self.learn(&whole, asked);
        whole
    }

    /// The whole of an answer, if it is not larger than `limit`. To be called with a time limit, because
    /// a place among the large ones may be held meanwhile.
    async fn collect(
        &self,
        mut answer: Answer,
        limit: usize,
    ) -> Result<(Bytes, Option<String>), UpstreamFailure> {
        let too_large =
            || UpstreamFailure::InvalidResponse(format!("larger than the limit of {limit} bytes"));
        if answer.length.is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut whole = BytesMut::new();
        let mut place = None;
        while let Some(chunk) = answer.body.next().await {
            let chunk = chunk.map_err(|error| UpstreamFailure::Connection(error.to_string()))?;
            if whole.len() + chunk.len() > limit {
                return Err(too_large());
            }
            if place.is_none() && whole.len() + chunk.len() > SMALL_ANSWER {
                // The semaphore is never closed.
                place = self.large.acquire().await.ok();
            }
            whole.extend_from_slice(&chunk);
        }
        Ok((whole.freeze(), answer.encoding))
    }

    /// Returns the metadata of the object at `path`, or `None` if the object is absent.
    pub(super) async fn head(&self, path: &str) -> Result<Option<Answer>, UpstreamFailure> {
        if let Place::Directory(_) = &self.place {
            return self.get(path, 0).await;
        }
        let _turn = self.turn().await?;
        let mut asked = None;
        let answer = match self.send(Method::HEAD, path, 0).await {
            Ok(response) => self.head_answer(path, response, &mut asked).await,
            Err(failure) => Err(failure),
        };
        self.learn(&answer, asked);
        answer
    }

    async fn head_answer(
        &self,
        path: &str,
        response: reqwest::Response,
        asked: &mut Option<Duration>,
    ) -> Result<Option<Answer>, UpstreamFailure> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        match response.status() {
            StatusCode::OK if length.is_some() => {
                let encoding = encoding(response.headers());
                let body = futures_util::stream::empty().boxed();
                Ok(Some(Answer { length, encoding, body }))
            }
            // It knows no HEAD, or no length: then the head of a GET has to do.
            StatusCode::OK | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                self.ask_and_count(path, 0, asked).await
            }
            _ => self.no_answer(response, asked).await,
        }
    }

    /// Returns how long the circuit stays open, or `None` if it is closed.
    pub(super) fn left_alone(&self) -> Option<Duration> {
        self.breaker().left(Instant::now())
    }

    /// Returns a permit for a request, unless the circuit is open.
    async fn turn(&self) -> Result<Option<SemaphorePermit<'_>>, UpstreamFailure> {
        if let Some(left) = self.left_alone() {
            self.counters.circuit_open();
            return Err(UpstreamFailure::CircuitOpen(left));
        }
        // The semaphore is never closed.
        let turn = self.questions.acquire().await.ok();
        // Those before this one may have found out that there is no answer to be had.
        let pause = self.breaker().pause(Instant::now());
        pause.map_or(Ok(turn), |pause| {
            self.counters.circuit_open();
            Err(UpstreamFailure::CircuitOpen(pause))
        })
    }

    fn learn<T>(&self, answer: &Result<Option<T>, UpstreamFailure>, asked: Option<Duration>) {
        match answer {
            Ok(found) => {
                self.counters.answered(found.is_some());
                self.tell(self.breaker().worked(), "");
            }
            Err(failure) => {
                self.counters.failed();
                self.failed(failure, asked);
            }
        }
    }

    /// Marks a NAR of this upstream as bad, after it failed verification.
    pub(super) fn mark_bad(&self, name: NarName, ttl: Duration) {
        self.bad_nars.insert(name, (), ttl);
    }

    /// Fails if the NAR of this name is marked as bad.
    pub(super) fn check_trust(&self, name: NarName) -> Result<(), UpstreamFailure> {
        match self.bad_nars.get(&name) {
            Some(()) => Err(UpstreamFailure::InvalidResponse(format!(
                "the NAR {name} failed verification before"
            ))),
            None => Ok(()),
        }
    }

    /// Records a failure that occurred after the start of the response.
    pub(super) fn failed(&self, failure: &UpstreamFailure, asked: Option<Duration>) {
        let change = self.breaker().failed(Instant::now(), asked);
        self.tell(change, &failure.to_string());
    }

    fn tell(&self, change: Option<Change>, why: &str) {
        match change {
            Some(Change::Paused(pause)) => {
                self.counters.set_up(false);
                warn!(
                    upstream = %self.name,
                    error = why,
                    "upstream failed; circuit open for {pause:?}"
                );
            }
            Some(Change::Recovered) => {
                self.counters.set_up(true);
                info!(upstream = %self.name, "upstream recovered; circuit closed");
            }
            None => {}
        }
    }

    /// Sends a request, and counts the received bytes.
    async fn ask_and_count(
        &self,
        path: &str,
        from: u64,
        asked: &mut Option<Duration>,
    ) -> Result<Option<Answer>, UpstreamFailure> {
        let answer = self.ask(path, from, asked).await?;
        Ok(answer.map(|answer| {
            let received = self.counters.received();
            let count = move |chunk: &Bytes| received.inc_by(chunk.len() as u64);
            Answer { body: answer.body.inspect_ok(count).boxed(), ..answer }
        }))
    }

    async fn ask(
        &self,
        path: &str,
        from: u64,
        asked: &mut Option<Duration>,
    ) -> Result<Option<Answer>, UpstreamFailure> {
        if let Place::Directory(directory) = &self.place {
            return read(directory.join(path), from).await;
        }
        let response = self.send(Method::GET, path, from).await?;
        match response.status() {
            StatusCode::OK => whole(response, from).map(Some),
            StatusCode::PARTIAL_CONTENT if from > 0 => part(response, from).map(Some),
            _ => self.no_answer(response, asked).await,
        }
    }

    /// What a status means that is not success.
    async fn no_answer(
        &self,
        response: reqwest::Response,
        asked: &mut Option<Duration>,
    ) -> Result<Option<Answer>, UpstreamFailure> {
        match response.status() {
            // As Nix takes them (`FileTransferError::NotFound` in `src/libstore/filetransfer.cc`).
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            StatusCode::FORBIDDEN if self.forbids_the_absent().await => Ok(None),
            StatusCode::UNAUTHORIZED => Err(self.unauthorized()),
            status => {
                *asked = retry_after(response.headers());
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
        let Place::Http { client, base, login, .. } = &self.place else {
            return Err(UpstreamFailure::InvalidResponse("a directory has no HTTP".to_owned()));
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
        match tokio::time::timeout(self.timeout, persistently(client, request)).await {
            Err(_) => Err(UpstreamFailure::TimedOut(self.timeout)),
            Ok(Err(error)) if error.is_timeout() => Err(UpstreamFailure::TimedOut(self.timeout)),
            Ok(Err(error)) if error.is_redirect() => {
                Err(UpstreamFailure::InvalidResponse(root_cause(error)))
            }
            Ok(Err(error)) => Err(UpstreamFailure::Connection(root_cause(error.without_url()))),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// A client that may read only `nix-cache-info` gets 403 for everything else, and so does a
    /// client that requests an absent object of a bucket. Nix treats both as absent; here the first
    /// is a failure.
    async fn forbids_the_absent(&self) -> bool {
        let ask = async || match self.send(Method::GET, "nix-cache-info", 0).await {
            Ok(response) => Ok(response.status().is_success()),
            Err(failure) => Err(failure),
        };
        self.forbids_the_absent.get_or_try_init(ask).await.is_ok_and(|forbids| *forbids)
    }
}

fn http_client(upstream: &Upstream) -> Result<reqwest::Client, Box<dyn Error + Send + Sync>> {
    // Another part of the program may have set it already, to the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redirects = Redirects::of(&upstream.url);
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("nix-stored/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT.min(upstream.timeout))
        .read_timeout(upstream.timeout)
        .redirect(redirects.policy())
        .dns_resolver(Arc::new(redirects))
        // It would carry the query of a signed URL to another server.
        .referer(false)
        .no_proxy();
    if let Some(proxy) = &upstream.proxy {
        builder = builder.proxy(Proxy::all(proxy.clone())?);
    }
    // `SSL_CERT_FILE` is honoured by the platform's verifier itself.
    for authority in authorities()? {
        builder = builder.tls_certs_merge([Certificate::from_der(&authority)?]);
    }
    Ok(builder.build()?)
}

/// Sends a request, and repeats it if the reused connection was closed: the upstream may close an
/// idle connection just when the next request is sent.
async fn persistently(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> Result<reqwest::Response, reqwest::Error> {
    for _ in 0..STALE {
        let Some(again) = request.try_clone() else {
            break;
        };
        match client.execute(again).await {
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {}
            answer => return answer,
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

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
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

fn whole(response: reqwest::Response, from: u64) -> Result<Answer, UpstreamFailure> {
    let length = response.content_length();
    let encoding = encoding(response.headers());
    // It does not know ranges; then what we have already is thrown away.
    Ok(Answer { length, encoding, body: skip(body(response), from) })
}

fn part(response: reqwest::Response, from: u64) -> Result<Answer, UpstreamFailure> {
    let range = response.headers().get(header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok()).unwrap_or_default();
    let parsed = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
    let starts = parsed.and_then(|(range, _)| range.split_once('-')?.0.parse::<u64>().ok());
    if starts != Some(from) {
        return Err(UpstreamFailure::InvalidResponse(format!(
            "Content-Range “{range}” for a range from {from}"
        )));
    }
    let length = parsed.and_then(|(_, length)| length.parse().ok());
    let encoding = encoding(response.headers());
    Ok(Answer { length, encoding, body: body(response) })
}

/// Leaves out the first `count` bytes.
fn skip(
    body: BoxStream<'static, io::Result<Bytes>>,
    count: u64,
) -> BoxStream<'static, io::Result<Bytes>> {
    if count == 0 {
        return body;
    }
    let mut left = count;
    body.map_ok(move |mut chunk| {
        let skipped = left.min(chunk.len() as u64);
        left -= skipped;
        // It is not more than the chunk has.
        chunk.split_off(skipped as usize)
    })
    .boxed()
}

/// Reads a file of a directory.
async fn read(path: PathBuf, from: u64) -> Result<Option<Answer>, UpstreamFailure> {
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
    Ok(Some(Answer { length: Some(length), encoding: None, body }))
}
