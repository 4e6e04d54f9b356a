//! The requests that are made of a bucket, in the words of a store: keys in, absence as none, and
//! errors sorted.

use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use http::Method;
use object_store::aws::AmazonS3;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetRange, GetResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
};

use super::client::Clients;
use crate::store::{RemoteTrouble, StoreError};

/// A server copies so much in one request (`CopyObject` in Amazon's API reference).
const COPY_LIMIT: u64 = 5 << 30;

/// The parts of a copy that goes through us.
const COPY_PART: usize = 64 << 20;

/// A bucket, or what is below a prefix in it.
#[derive(Debug)]
pub(super) struct Bucket {
    s3: AmazonS3,
    /// The same for what may take longer.
    uploads: AmazonS3,
    signed: reqwest::Client,
    prefix: String,
}

impl Bucket {
    /// `prefix` is empty, or ends in no slash.
    pub(super) fn new(clients: Clients, prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let Clients { requests: s3, uploads, signed } = clients;
        Self { s3, uploads, signed, prefix }
    }

    pub(super) fn s3(&self) -> &AmazonS3 {
        &self.s3
    }

    /// What all keys in the bucket begin with: nothing, or something with a slash at its end.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn path(&self, key: &str) -> Path {
        Path::parse(format!("{}{key}", self.prefix))
            .expect("keys have neither empty parts nor dots for parts")
    }

    /// The key of what was listed; none for what is not below our prefix.
    fn key<'a>(&self, path: &'a Path) -> Option<&'a str> {
        path.as_ref().strip_prefix(&self.prefix)
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, StoreError> {
        absent_is_none("looking at", key, self.s3.head(&self.path(key)).await)
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<GetResult>, StoreError> {
        absent_is_none("reading", key, self.s3.get(&self.path(key)).await)
    }

    /// A whole object that is small.
    pub(super) async fn read(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        match self.get(key).await? {
            Some(found) => found.bytes().await.map(Some).map_err(failed("reading", key)),
            None => Ok(None),
        }
    }

    /// A part of an object's bytes.
    pub(super) async fn read_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
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

    /// Stores an object unless there is one. Only some servers look: others store it anyway.
    pub(super) async fn put_new(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.s3.put_opts(&self.path(key), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failed("storing", key)(error)),
        }
    }

    /// Begins to store an object in parts.
    pub(super) async fn begin(
        &self,
        key: &str,
        content_type: &'static str,
    ) -> Result<Box<dyn MultipartUpload>, StoreError> {
        let options = PutMultipartOptions {
            attributes: attributes(content_type),
            ..PutMultipartOptions::default()
        };
        let begun = self.uploads.put_multipart_opts(&self.path(key), options).await;
        begun.map_err(failed("beginning", key))
    }

    /// Copies an object within the bucket. False if it is absent.
    pub(super) async fn copy(&self, from: &str, to: &str, size: u64) -> Result<bool, StoreError> {
        if size <= COPY_LIMIT {
            let copied = self.uploads.copy(&self.path(from), &self.path(to)).await;
            return absent_is_none("copying", from, copied).map(|done| done.is_some());
        }
        let Some(found) = self.get(from).await? else {
            return Ok(false);
        };
        let begun =
            self.uploads.put_multipart(&self.path(to)).await.map_err(failed("copying", from))?;
        let mut copy = object_store::WriteMultipart::new_with_chunk_size(begun, COPY_PART);
        let mut bytes = found.into_stream();
        while let Some(chunk) = bytes.try_next().await.map_err(failed("copying", from))? {
            copy.wait_for_capacity(2).await.map_err(failed("copying", from))?;
            copy.put(chunk);
        }
        copy.finish().await.map(|_| true).map_err(failed("copying", from))
    }

    /// Deletes an object; one that is absent is as good as deleted.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let deleted = self.s3.delete(&self.path(key)).await;
        absent_is_none("deleting", key, deleted).map(drop)
    }

    /// Everything below a folder, or everything; keys without our prefix.
    pub(super) fn list(
        &self,
        folder: &str,
    ) -> BoxStream<'_, Result<(String, ObjectMeta), StoreError>> {
        let below = format!("{}{folder}", self.prefix);
        let below = (!below.is_empty())
            .then(|| Path::parse(below.trim_end_matches('/')).expect("it was made of keys"));
        let listed = self.s3.list(below.as_ref());
        let listed = listed.map_err(|error| failed("listing", "the bucket")(error));
        listed
            .try_filter_map(async |found| {
                Ok(self.key(&found.location).map(str::to_owned).map(|key| (key, found)))
            })
            .boxed()
    }

    /// A URL by which anybody can fetch an object for some time.
    pub(super) async fn link(&self, key: &str, valid: Duration) -> Result<String, StoreError> {
        let signed = self.s3.signed_url(Method::GET, &self.path(key), valid).await;
        signed.map(String::from).map_err(failed("signing a link to", key))
    }

    /// Asks for something about the bucket itself, with these parameters.
    pub(super) async fn ask(
        &self,
        parameters: &[(&str, &str)],
    ) -> Result<reqwest::Result<reqwest::Response>, StoreError> {
        const VALID: Duration = Duration::from_secs(60);
        let options = SignedUrlOptions::new().with_query(parameters.iter().copied());
        let root = Path::default();
        let signed = self.s3.signed_url_opts(Method::GET, &root, VALID, &options).await;
        let url = signed.map_err(failed("signing a request to", "the bucket"))?;
        // Whoever has the URL may ask the same.
        Ok(self.signed.get(url).send().await.map_err(reqwest::Error::without_url))
    }
}

fn attributes(content_type: &'static str) -> Attributes {
    Attributes::from_iter([(Attribute::ContentType, content_type)])
}

/// When an object was stored.
pub(super) fn modified(meta: &ObjectMeta) -> SystemTime {
    meta.last_modified.into()
}

fn absent_is_none<T>(
    doing: &'static str,
    key: &str,
    result: object_store::Result<T>,
) -> Result<Option<T>, StoreError> {
    match result {
        Ok(found) => Ok(Some(found)),
        // That is no absence of an object.
        Err(Error::NotFound { source, .. }) if !source.to_string().contains("NoSuchBucket") => {
            Ok(None)
        }
        Err(error) => Err(failed(doing, key)(error)),
    }
}

/// Sorts an error of the object store.
pub(super) fn failed(doing: &'static str, key: &str) -> impl FnOnce(Error) -> StoreError + use<> {
    let key = key.to_owned();
    move |error| {
        let trouble = trouble(&error);
        StoreError::Remote { doing, key, trouble, source: Box::new(error) }
    }
}

fn trouble(error: &Error) -> RemoteTrouble {
    if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) {
        return RemoteTrouble::Denied;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>()
            && error.kind() == HttpErrorKind::Timeout
        {
            return RemoteTrouble::TimedOut;
        }
        cause = error.source();
    }
    // The type that knows the status is not public (object_store 0.14).
    let told = error.to_string();
    if ["status code: 503", "status code: 429", "SlowDown"].iter().any(|it| told.contains(it)) {
        RemoteTrouble::Busy
    } else {
        RemoteTrouble::Failed
    }
}
