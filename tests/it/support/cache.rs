//! A cache without a socket: the router as a service in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use nix_stored::browse::Browser;
use nix_stored::cache::{Actor, Cache};
use nix_stored::config::{Access, Config};
use nix_stored::http::{App, AppState, app};
use nix_stored::retention::Collector;
use nix_stored::store::FsStore;
use tower::ServiceExt;

use super::scratch::Scratch;

/// The router over a temporary directory.
pub struct TestCache {
    app: App,
    cache: Arc<Cache>,
    browser: Arc<Browser>,
    dir: PathBuf,
    _scratch: Option<Scratch>,
}

/// A complete response.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl TestCache {
    /// A cache on a loopback socket with no settings: anyone may read and upload.
    pub fn new() -> Self {
        Self::configured(&[], true)
    }

    /// A cache with these settings, named without `NIX_STORED_`, on a local socket or another.
    pub fn configured(vars: &[(&str, &str)], local: bool) -> Self {
        let scratch = Scratch::new();
        let mut cache = Self::in_directory(scratch.join("cache"), vars, local);
        cache._scratch = Some(scratch);
        cache
    }

    /// A second cache over the same directory, with these settings.
    pub fn reconfigured(&self, vars: &[(&str, &str)]) -> Self {
        Self::in_directory(self.dir(), vars, true)
    }

    fn in_directory(dir: PathBuf, vars: &[(&str, &str)], local: bool) -> Self {
        let vars =
            vars.iter().map(|(name, value)| (format!("NIX_STORED_{name}"), (*value).to_owned()));
        let config = Config::from_vars(vars).expect("the test's configuration is right");
        let store = FsStore::open(&dir, config.min_free_space).expect("the store opens");
        let cache = Cache::new(Arc::new(store.into()), config.cache_info, config.admission);
        Self::serving(Arc::new(cache), config.users.access(local), dir)
    }

    /// A cache over the caller's directory that keeps paths used within `grace`.
    pub fn over(dir: &Path, grace: Duration) -> Self {
        let config = Config::from_vars([]).expect("an empty configuration is valid");
        let store = FsStore::open(dir, 0).expect("the store opens");
        let cache = Cache::new(Arc::new(store.into()), config.cache_info, config.admission);
        let cache = Arc::new(cache.with_grace(grace));
        Self::serving(cache, config.users.access(true), dir.to_owned())
    }

    fn serving(cache: Arc<Cache>, access: Access, dir: PathBuf) -> Self {
        let state = AppState::local(Arc::clone(&cache), access);
        Self { browser: Arc::clone(state.browser()), app: app(state), cache, dir, _scratch: None }
    }

    /// The data behind the pages.
    pub fn browser(&self) -> &Arc<Browser> {
        &self.browser
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn collector(&self) -> Collector {
        Collector::new(Arc::clone(&self.cache), Actor::collector())
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// The files in the cache, except those of the daemon itself.
    pub fn objects(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.dir()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder of the cache can be read") {
                let path = entry.expect("an entry can be read").path();
                let name =
                    path.strip_prefix(self.dir()).expect("the path is in the directory").to_owned();
                if path.is_dir() && name.as_os_str() != ".nix-stored" {
                    folders.push(path);
                } else if path.is_file() {
                    found.push(name.display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    /// The number of files left of abandoned uploads.
    pub fn staged(&self) -> usize {
        let folders = std::fs::read_dir(self.dir().join(".nix-stored/staging")).expect("present");
        folders
            .map(|folder| {
                std::fs::read_dir(folder.expect("readable").path()).expect("readable").count()
            })
            .sum()
    }

    pub async fn send(&self, request: Request<Body>) -> TestResponse {
        let response = self.app.clone().oneshot(request).await;
        let (head, body) = response.unwrap_or_else(|never| match never {}).into_parts();
        let body = body.collect().await.expect("the response is complete").to_bytes();
        TestResponse { status: head.status, headers: head.headers, body }
    }

    pub async fn get(&self, path: &str) -> TestResponse {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    pub async fn head(&self, path: &str) -> TestResponse {
        self.send(request(Method::HEAD, path, Body::empty())).await
    }

    pub async fn put(&self, path: &str, body: impl Into<Body>) -> TestResponse {
        self.send(request(Method::PUT, path, body.into())).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> TestResponse {
        let mut request = request(Method::GET, path, Body::empty());
        for (name, value) in headers {
            let name = http::HeaderName::try_from(*name).expect("a header's name");
            request.headers_mut().append(name, value.parse().expect("a header's value"));
        }
        self.send(request).await
    }

    /// Uploads in another task, so that the test can act during the upload.
    pub fn put_in_the_background(
        &self,
        path: &str,
        body: Body,
    ) -> tokio::task::JoinHandle<StatusCode> {
        let response = self.app.clone().oneshot(request(Method::PUT, path, body));
        tokio::spawn(async move { response.await.unwrap_or_else(|never| match never {}).status() })
    }
}

pub fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(path).body(body).expect("a request")
}

impl TestResponse {
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:?} {}", self.headers, self.text());
        self
    }

    #[track_caller]
    pub fn contains(self, part: &str) -> Self {
        assert!(self.text().contains(part), "“{part}” is not in “{}”", self.text());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible characters"))
    }
}

/// A body whose chunks the test sends one by one.
pub struct SlowBody(tokio::sync::mpsc::Sender<std::io::Result<Bytes>>);

impl SlowBody {
    pub fn new() -> (Self, Body) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let chunks = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        (Self(sender), Body::from_stream(chunks))
    }

    /// Sends a chunk, and returns when it was read.
    pub async fn send(&self, chunk: &[u8]) {
        let sent = self.0.send(Ok(Bytes::copy_from_slice(chunk))).await;
        sent.expect("the body is being read");
        // The channel has capacity again only after the first chunk was read.
        let _ = self.0.reserve().await;
    }

    /// Ends the body with an error, like a lost connection.
    pub async fn disconnect(self) {
        let _ = self.0.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
    }
}
