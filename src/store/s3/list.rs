//! Lists all objects in the bucket.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::Semaphore;

use super::bucket::{BucketClient, DOWNLOAD_WHOLE_LIMIT, OWN_PREFIX, contradiction};
use super::meta::Meta;
use super::uses::S3Uses;
use crate::nix::{CachePath, narinfo};
use crate::store::{Listed, ListedObject, StoreError};

/// The number of objects that are read at a time while the bucket is listed.
const CONCURRENT_READS: usize = 32;

/// The number of objects above [`DOWNLOAD_WHOLE_LIMIT`] that are read at a time, to limit the
/// memory for large narinfos.
const CONCURRENT_LARGE_READS: usize = 2;

/// Reads the recorded uses, and lists all objects in the bucket except the daemon's own.
pub(super) async fn list(
    bucket: Arc<BucketClient>,
    uses: Arc<S3Uses>,
    wanted: fn(&CachePath) -> bool,
) -> Result<BoxStream<'static, Result<Listed, StoreError>>, StoreError> {
    uses.refresh().await?;
    // The list borrows the bucket, so a task owns both.
    let (sender, receiver) = tokio::sync::mpsc::channel(CONCURRENT_READS);
    let lister = Arc::clone(&bucket);
    tokio::spawn(async move {
        let mut found = lister.list("");
        while let Some(found) = found.next().await {
            if sender.send(found).await.is_err() {
                return;
            }
        }
    });
    let found = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|found| (found, receiver))
    });
    let large = Arc::new(Semaphore::new(CONCURRENT_LARGE_READS));
    let listed = found
        .map(move |found| {
            let (bucket, uses) = (Arc::clone(&bucket), Arc::clone(&uses));
            let large = Arc::clone(&large);
            async move {
                match found {
                    Ok((key, meta)) => listed(&bucket, &uses, &large, key, &meta, wanted).await,
                    Err(error) => Some(Err(error)),
                }
            }
        })
        .buffer_unordered(CONCURRENT_READS)
        .filter_map(async |listed| listed);
    Ok(listed.boxed())
}

async fn listed(
    bucket: &BucketClient,
    uses: &S3Uses,
    large: &Semaphore,
    key: String,
    meta: &Meta,
    wanted: fn(&CachePath) -> bool,
) -> Option<Result<Listed, StoreError>> {
    if key.starts_with(OWN_PREFIX) {
        return None;
    }
    let path = match key.parse::<CachePath>() {
        Ok(CachePath::CacheInfo) => return None,
        // A name that parses but is not the key of the object is never read, so it is listed as
        // foreign.
        Ok(path) if path.key() == key => path,
        _ => return Some(Ok(Listed::Foreign(key))),
    };
    let content = if wanted(&path) && meta.size <= narinfo::MAX_SIZE {
        // The semaphore is never closed.
        let _permit =
            if meta.size > DOWNLOAD_WHOLE_LIMIT { large.acquire().await.ok() } else { None };
        match bucket.read(&key).await {
            Ok(Some(content)) if content.len() as u64 == meta.size => Some(content),
            // The object was replaced after it was listed, or a proxy sent the response.
            Ok(Some(content)) => match bucket.find_listed(&key).await {
                Ok(Some(again)) if again.size == content.len() as u64 => {
                    let metadata = again.to_metadata(uses.last(&key));
                    let content = Some(content);
                    return Some(Ok(Listed::Object(ListedObject { path, metadata, content })));
                }
                Ok(None) => return None,
                Ok(Some(_)) => {
                    let why = "its length differs from the listed one";
                    return Some(Ok(Listed::Unreadable(path, contradiction(&key, why))));
                }
                Err(error) => return Some(Ok(Listed::Unreadable(path, error))),
            },
            // The object was removed after it was listed, or a proxy sent the response.
            Ok(None) => match bucket.find_listed(&key).await {
                Ok(None) => return None,
                Ok(Some(_)) => {
                    let why = "the server lists it, but answers a GET with 404";
                    return Some(Ok(Listed::Unreadable(path, contradiction(&key, why))));
                }
                Err(error) => return Some(Ok(Listed::Unreadable(path, error))),
            },
            Err(error) => return Some(Ok(Listed::Unreadable(path, error))),
        }
    } else if wanted(&path) && matches!(path, CachePath::NarInfo(_)) {
        let error = StoreError::narinfo_too_large(&key, meta.size);
        return Some(Ok(Listed::Unreadable(path, error)));
    } else {
        None
    };
    let metadata = meta.to_metadata(uses.last(&key));
    Some(Ok(Listed::Object(ListedObject { path, metadata, content })))
}
