//! The requests to a bucket: they take keys, return `None` for absent objects, and classify errors.

use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::Method;
use http::header::IF_MATCH;
use object_store::aws::AmazonS3;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetRange, GetResult, MultipartUpload, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, UpdateVersion,
};
use reqwest::Url;

use super::client::Clients;
use super::meta::Meta;
use super::retry::{RETRY_TIMEOUT, pause};
use super::strict::is_html;
use crate::store::{RemoteFailure, StoreError};

/// The prefix of the daemon's own objects.
pub(super) const OWN_PREFIX: &str = ".nix-stored/";

/// Objects up to this size, in bytes, are read into memory.
pub(super) const DOWNLOAD_WHOLE_LIMIT: u64 = 256 * 1024;

/// The largest object, in bytes, that a server copies in one request (`CopyObject` in Amazon's API reference).
const COPY_LIMIT: u64 = 5 << 30;

/// The size of the parts of a copy through the daemon.
const COPY_PART: usize = 64 << 20;

/// The validity of a presigned URL that the daemon uses itself.
const SIGNATURE_VALID: Duration = Duration::from_secs(60);

/// The timeout of a deletion. It is unknown when a deletion without a response takes effect.
pub(super) const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of an error response, in bytes.
const ERROR_BODY_LIMIT: usize = 64 * 1024;

/// The client of a bucket, or of a prefix in it.
#[derive(Debug)]
pub(super) struct BucketClient {
    s3: AmazonS3,
    /// The client for requests with many bytes, which may take longer.
    uploads: AmazonS3,
    signed: reqwest::Client,
    skip_signature: bool,
    prefix: String,
}

impl BucketClient {
    /// Creates the client. `prefix` is empty, or a prefix without a slash at its end.
    pub(super) fn new(clients: Clients, prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let Clients { requests: s3, uploads, signed, skip_signature } = clients;
        Self { s3, uploads, signed, skip_signature, prefix }
    }

    pub(super) fn s3(&self) -> &AmazonS3 {
        &self.s3
    }

    /// Returns the prefix of all keys: empty, or with a slash at its end.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn path(&self, key: &str) -> Path {
        Path::parse(format!("{}{key}", self.prefix))
            .expect("keys have neither empty parts nor dots for parts")
    }

    /// Returns the metadata of an object, or `None` if the object is absent. A response to HEAD has
    /// no body with an error code, so a 404 can mean an absent bucket, or come from a proxy. So a
    /// GET confirms the absence.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Meta>, StoreError> {
        match self.s3.head(&self.path(key)).await {
            Ok(meta) => Ok(Some(Meta::from(&meta))),
            Err(Error::NotFound { .. }) => {
                Ok(self.get(key).await?.map(|found| Meta::from(&found.meta)))
            }
            Err(error) => Err(failed("checking", key)(error)),
        }
    }

    /// Whether an object exists, according to a response to HEAD that a proxy may have sent. Only
    /// for uses where a wrong result does no harm.
    pub(super) async fn is_probably_present(&self, key: &str) -> Result<bool, StoreError> {
        match self.s3.head(&self.path(key)).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed("checking", key)(error)),
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<GetResult>, StoreError> {
        absent_is_none("reading", key, self.s3.get(&self.path(key)).await)
    }

    /// Reads a whole object into memory.
    pub(super) async fn read(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        match self.get(key).await? {
            Some(found) => found.bytes().await.map(Some).map_err(failed("reading", key)),
            None => Ok(None),
        }
    }

    /// Reads a range of an object if it still has this entity tag.
    pub(super) async fn read_range(
        &self,
        key: &str,
        range: Range<u64>,
        etag: Option<String>,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let range = Some(GetRange::Bounded(range));
        let options = GetOptions { range, if_match: etag, ..GetOptions::default() };
        let found = self.s3.get_opts(&self.path(key), options).await.map_err(io::Error::other)?;
        Ok(found.into_stream().map_err(io::Error::other).boxed())
    }

    /// Stores a small object.
    pub(super) async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        content_type: &'static str,
    ) -> Result<(), StoreError> {
        self.put_by(&self.s3, key, bytes, content_type).await
    }

    /// Stores an object in one request.
    pub(super) async fn upload(
        &self,
        key: &str,
        bytes: Bytes,
        content_type: &'static str,
    ) -> Result<(), StoreError> {
        self.put_by(&self.uploads, key, bytes, content_type).await
    }

    async fn put_by(
        &self,
        client: &AmazonS3,
        key: &str,
        bytes: Bytes,
        content_type: &'static str,
    ) -> Result<(), StoreError> {
        let options = PutOptions { attributes: attributes(content_type), ..PutOptions::default() };
        let put = client.put_opts(&self.path(key), bytes.into(), options).await;
        put.map(drop).map_err(failed("storing", key))
    }

    /// Stores an object unless it exists. Returns false if it exists. Servers without conditional
    /// writes replace it.
    pub(super) async fn put_new(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.s3.put_opts(&self.path(key), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failed("storing", key)(error)),
        }
    }

    /// Stores an object if the stored object has this entity tag, or is absent if there is none, on
    /// a server with conditional writes. Otherwise returns false.
    pub(super) async fn put_in_place_of(
        &self,
        key: &str,
        bytes: Bytes,
        content_type: &'static str,
        etag: Option<String>,
    ) -> Result<bool, StoreError> {
        let mode = match etag {
            Some(_) => PutMode::Update(UpdateVersion { e_tag: etag, version: None }),
            None => PutMode::Create,
        };
        let options =
            PutOptions { mode, attributes: attributes(content_type), ..PutOptions::default() };
        match self.s3.put_opts(&self.path(key), bytes.into(), options).await {
            Ok(_) => Ok(true),
            // The object to be replaced was removed.
            Err(
                Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. },
            ) => Ok(false),
            Err(error) => Err(failed("storing", key)(error)),
        }
    }

    /// Starts a multipart upload.
    pub(super) async fn start_multipart(
        &self,
        key: &str,
        content_type: &'static str,
    ) -> Result<Box<dyn MultipartUpload>, StoreError> {
        let options = PutMultipartOptions {
            attributes: attributes(content_type),
            ..PutMultipartOptions::default()
        };
        let started = self.uploads.put_multipart_opts(&self.path(key), options).await;
        started.map_err(failed("starting the upload of", key))
    }

    /// Copies an object within the bucket. Returns false if it is absent.
    pub(super) async fn copy(&self, from: &str, to: &str, size: u64) -> Result<bool, StoreError> {
        if size <= COPY_LIMIT {
            let copied = self.uploads.copy(&self.path(from), &self.path(to)).await;
            return absent_is_none("copying", from, copied).map(|done| done.is_some());
        }
        let Some(found) = self.get(from).await? else {
            return Ok(false);
        };
        let started =
            self.uploads.put_multipart(&self.path(to)).await.map_err(failed("copying", from))?;
        let mut copy = object_store::WriteMultipart::new_with_chunk_size(started, COPY_PART);
        let mut bytes = found.into_stream();
        while let Some(chunk) = bytes.try_next().await.map_err(failed("copying", from))? {
            copy.wait_for_capacity(2).await.map_err(failed("copying", from))?;
            copy.put(chunk);
        }
        copy.finish().await.map(|_| true).map_err(failed("copying", from))
    }

    /// Deletes an object. An absent object counts as deleted. The request is retried, so this is
    /// only for objects that no other process stores again meanwhile.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let started = Instant::now();
        for tries in 0.. {
            match self.send_delete(key, None, DELETE_TIMEOUT).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_temporary && started.elapsed() < RETRY_TIMEOUT => {
                    tokio::time::sleep(pause(tries)).await;
                }
                Err(error) => return Err(error.while_doing("deleting", key)),
            }
        }
        unreachable!("the loop ends after RETRY_TIMEOUT")
    }

    /// Deletes an object if it still has this entity tag, on servers that check it. The request is
    /// sent once. After an error it is unknown whether the object was deleted.
    pub(super) async fn delete_once(
        &self,
        key: &str,
        etag: Option<&str>,
    ) -> Result<Deleted, DeleteError> {
        match self.send_delete(key, etag, DELETE_TIMEOUT).await {
            Ok(deleted) => Ok(deleted),
            Err(error) => Err(DeleteError {
                is_temporary: error.is_temporary,
                may_take_effect: error.failure != RemoteFailure::Busy && error.is_temporary,
                error: error.while_doing("deleting", key),
            }),
        }
    }

    /// Sends a plain DELETE. `object_store` would by default send `POST ?delete`, which some
    /// servers do not support, and would retry it.
    async fn send_delete(
        &self,
        key: &str,
        etag: Option<&str>,
        timeout: Duration,
    ) -> Result<Deleted, RequestError> {
        let path = self.path(key);
        let url = self.signed_url(Method::DELETE, &path, SIGNATURE_VALID, &[]).await;
        let mut request = self.signed.delete(url.map_err(RequestError::unsigned)?);
        if let Some(etag) = etag {
            request = request.header(IF_MATCH, etag);
        }
        let (status, text) = read_answer(request.timeout(timeout), ERROR_BODY_LIMIT).await?;
        let text = String::from_utf8_lossy(&text);
        match status {
            404 if text.contains("<Code>NoSuchKey</Code>") => Ok(Deleted::Done),
            412 => Ok(Deleted::IsAnother),
            // Only the condition can be unsupported, because all servers support DELETE.
            501 if etag.is_some() => Box::pin(self.send_delete(key, None, timeout)).await,
            200..=299 => Ok(Deleted::Done),
            _ => Err(RequestError::by(status, &text)),
        }
    }

    /// Returns a presigned URL of an object.
    pub(super) async fn presigned_url(
        &self,
        key: &str,
        valid: Duration,
    ) -> Result<String, StoreError> {
        let url = self.signed_url(Method::GET, &self.path(key), valid, &[]).await;
        url.map(String::from).map_err(failed("presigning a URL for", key))
    }

    /// Returns the URL of a request with these parameters, presigned for the time `valid` unless
    /// signatures are disabled.
    async fn signed_url(
        &self,
        method: Method,
        path: &Path,
        valid: Duration,
        parameters: &[(&str, &str)],
    ) -> object_store::Result<Url> {
        let options = SignedUrlOptions::new().with_query(parameters.iter().copied());
        let mut url = self.s3.signed_url_opts(method, path, valid, &options).await?;
        if self.skip_signature {
            url.set_query(None);
            if !parameters.is_empty() {
                url.query_pairs_mut().extend_pairs(parameters);
            }
        }
        Ok(url)
    }

    /// Sends a GET to the bucket itself with these parameters, and retries it until [`RETRY_TIMEOUT`] is
    /// over.
    pub(super) async fn get_query(
        &self,
        doing: &'static str,
        parameters: &[(&str, &str)],
        limit: usize,
    ) -> Result<Vec<u8>, StoreError> {
        let started = Instant::now();
        for tries in 0.. {
            match self.get_query_once(parameters, limit).await {
                Ok(text) => return Ok(text),
                Err(error) if error.is_temporary && started.elapsed() < RETRY_TIMEOUT => {
                    tokio::time::sleep(pause(tries)).await;
                }
                Err(error) => return Err(error.while_doing(doing, "the bucket")),
            }
        }
        unreachable!("the loop ends after RETRY_TIMEOUT")
    }

    async fn get_query_once(
        &self,
        parameters: &[(&str, &str)],
        limit: usize,
    ) -> Result<Vec<u8>, RequestError> {
        let root = Path::default();
        let url = self.signed_url(Method::GET, &root, SIGNATURE_VALID, parameters).await;
        let request = self.signed.get(url.map_err(RequestError::unsigned)?);
        let (status, text) = read_answer(request, limit).await?;
        match status {
            200..=299 => Ok(text),
            _ => Err(RequestError::by(status, &String::from_utf8_lossy(&text))),
        }
    }
}

/// The result of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deleted {
    /// The object is absent.
    Done,
    /// The object has another entity tag.
    IsAnother,
}

/// A deletion with an unknown result.
#[derive(Debug)]
pub(super) struct DeleteError {
    /// Whether a retry may succeed.
    pub is_temporary: bool,
    /// Whether the deletion may still take effect, because it was not refused.
    pub may_take_effect: bool,
    pub error: StoreError,
}

/// Sends a request with a presigned URL, and reads the whole response.
async fn read_answer(
    request: reqwest::RequestBuilder,
    limit: usize,
) -> Result<(u16, Vec<u8>), RequestError> {
    // The URL is a secret: it permits the same request.
    let answer = request.send().await.map_err(reqwest::Error::without_url);
    let mut answer = answer.map_err(RequestError::from)?;
    let status = answer.status();
    if status.is_success() && is_html(answer.headers()) {
        return Err(RequestError::failed(true, "the response is an HTML page".to_owned()));
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        text.extend_from_slice(&chunk);
        if text.len() > limit {
            return Err(RequestError::failed(false, "the response is too large".to_owned()));
        }
    }
    Ok((status.as_u16(), text))
}

/// The error for a request that the server does not support.
pub(super) const NOT_IMPLEMENTED: &str = "the server does not support this request";

/// A failed request.
struct RequestError {
    failure: RemoteFailure,
    /// Whether a retry may succeed.
    is_temporary: bool,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl RequestError {
    fn unsigned(error: Error) -> Self {
        Self { failure: remote_failure(&error), is_temporary: false, source: Box::new(error) }
    }

    /// Classifies a response by its status and text.
    fn by(status: u16, text: &str) -> Self {
        let start: String = text.chars().take(1000).collect();
        let source = format!("the server responded with {status}: {start}");
        match status {
            401 | 403 => {
                Self { failure: RemoteFailure::Denied, is_temporary: false, source: source.into() }
            }
            501 => Self::failed(false, NOT_IMPLEMENTED.to_owned()),
            404 if !text.contains("<Code>") => Self::failed(true, source),
            429 | 503 => {
                Self { failure: RemoteFailure::Busy, is_temporary: true, source: source.into() }
            }
            // Another process is changing the same object.
            409 => Self::failed(true, source),
            400..=499 => Self::failed(false, source),
            _ => Self::failed(true, source),
        }
    }

    fn while_doing(self, doing: &'static str, key: &str) -> StoreError {
        let (failure, source) = (self.failure, self.source);
        StoreError::Remote { doing, key: key.to_owned(), failure, source }
    }

    fn failed(is_temporary: bool, source: String) -> Self {
        Self { failure: RemoteFailure::Failed, is_temporary, source: source.into() }
    }
}

impl From<reqwest::Error> for RequestError {
    fn from(error: reqwest::Error) -> Self {
        let failure = match error.is_timeout() {
            true => RemoteFailure::TimedOut,
            false => RemoteFailure::Failed,
        };
        Self { failure, is_temporary: true, source: Box::new(error) }
    }
}

fn attributes(content_type: &'static str) -> Attributes {
    Attributes::from_iter([(Attribute::ContentType, content_type)])
}

fn absent_is_none<T>(
    doing: &'static str,
    key: &str,
    result: object_store::Result<T>,
) -> Result<Option<T>, StoreError> {
    match result {
        Ok(found) => Ok(Some(found)),
        // Other things can be absent, too, such as the bucket.
        Err(Error::NotFound { source, .. })
            if source.to_string().contains("<Code>NoSuchKey</Code>") =>
        {
            Ok(None)
        }
        Err(error) => Err(failed(doing, key)(error)),
    }
}

/// Classifies an error of the object store.
pub(super) fn failed(doing: &'static str, key: &str) -> impl FnOnce(Error) -> StoreError + use<> {
    let key = key.to_owned();
    move |error| {
        let failure = remote_failure(&error);
        StoreError::Remote { doing, key, failure, source: Box::new(error) }
    }
}

fn remote_failure(error: &Error) -> RemoteFailure {
    if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) {
        return RemoteFailure::Denied;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>()
            && error.kind() == HttpErrorKind::Timeout
        {
            return RemoteFailure::TimedOut;
        }
        cause = error.source();
    }
    // The type with the status is not public (object_store 0.14).
    let text = error.to_string();
    if ["status code: 503", "status code: 429", "SlowDown"].iter().any(|it| text.contains(it)) {
        RemoteFailure::Busy
    } else {
        RemoteFailure::Failed
    }
}

/// The error for a response that contradicts the metadata of the object.
pub(super) fn contradiction(key: &str, why: &'static str) -> StoreError {
    StoreError::Remote {
        doing: "reading",
        key: key.to_owned(),
        failure: RemoteFailure::Failed,
        source: why.into(),
    }
}
