//! Lists all objects in the bucket.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::Semaphore;

use super::bucket::{Bucket, OWN_FOLDER, SMALL, contradiction};
use super::meta::Meta;
use super::uses::S3Uses;
use crate::nix::{CachePath, narinfo};
use crate::store::{Listed, ListedObject, StoreError};

/// How many objects are read at a time while everything is listed.
const READERS: usize = 32;

/// How many of them may be larger than [`SMALL`], so that 32 of the largest narinfos are not in
/// memory at a time.
const LARGE_READERS: usize = 2;

/// Everything in the bucket that is not ours, when the uses are known.
pub(super) async fn list(
    bucket: Arc<Bucket>,
    uses: Arc<S3Uses>,
    wanted: fn(&CachePath) -> bool,
) -> Result<BoxStream<'static, Result<Listed, StoreError>>, StoreError> {
    uses.refresh().await?;
    // The list borrows the bucket, and has to go on after this.
    let (sender, receiver) = tokio::sync::mpsc::channel(READERS);
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
    let large = Arc::new(Semaphore::new(LARGE_READERS));
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
        .buffer_unordered(READERS)
        .filter_map(async |listed| listed);
    Ok(listed.boxed())
}

async fn listed(
    bucket: &Bucket,
    uses: &S3Uses,
    large: &Semaphore,
    key: String,
    meta: &Meta,
    wanted: fn(&CachePath) -> bool,
) -> Option<Result<Listed, StoreError>> {
    if key.starts_with(OWN_FOLDER) {
        return None;
    }
    let path = match key.parse::<CachePath>() {
        Ok(CachePath::CacheInfo) => return None,
        // An object with another key is not found under this name.
        Ok(path) if path.key() == key => path,
        _ => return Some(Ok(Listed::Foreign(key))),
    };
    let content = if wanted(&path) && meta.size <= narinfo::MAX_SIZE {
        // The semaphore is never closed.
        let _permit = if meta.size > SMALL { large.acquire().await.ok() } else { None };
        match bucket.read(&key).await {
            Ok(Some(content)) if content.len() as u64 == meta.size => Some(content),
            // It was replaced since it was listed, or something else answered.
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
            // It has gone in the meantime, or only seems so.
            Ok(None) => match bucket.find_listed(&key).await {
                Ok(None) => return None,
                Ok(Some(_)) => {
                    let why = "the server lists it, but does not find it";
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
