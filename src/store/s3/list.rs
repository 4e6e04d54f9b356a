//! Going through everything in the bucket.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::ObjectMeta;

use super::bucket::Bucket;
use super::uses::Uses;
use super::{OWN_FOLDER, metadata};
use crate::nix::CachePath;
use crate::store::{Listed, ListedObject, StoreError};

/// A narinfo and the like is listed with its content up to this size, as in a directory.
pub(super) const LISTED_LIMIT: u64 = 1 << 20;

/// How many objects are read at a time while everything is listed.
const READERS: usize = 32;

/// Everything in the bucket that is not ours, when the uses are known.
pub(super) async fn list(
    bucket: Arc<Bucket>,
    uses: Arc<Uses>,
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
    let listed = found
        .map(move |found| {
            let (bucket, uses) = (Arc::clone(&bucket), Arc::clone(&uses));
            async move {
                match found {
                    Ok((key, meta)) => listed(&bucket, &uses, key, &meta, wanted).await,
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
    uses: &Uses,
    key: String,
    meta: &ObjectMeta,
    wanted: fn(&CachePath) -> bool,
) -> Option<Result<Listed, StoreError>> {
    if key.starts_with(OWN_FOLDER) {
        return None;
    }
    let path = match key.parse::<CachePath>() {
        Ok(CachePath::CacheInfo) => return None,
        // What has another key is not found under this name.
        Ok(path) if path.key() == key => path,
        _ => return Some(Ok(Listed::Foreign(key))),
    };
    let content = if wanted(&path) && meta.size <= LISTED_LIMIT {
        match bucket.read(&key).await {
            Ok(Some(content)) => Some(content),
            // It has gone in the meantime.
            Ok(None) => return None,
            Err(error) => return Some(Ok(Listed::Unreadable(path, error))),
        }
    } else {
        None
    };
    let metadata = metadata(uses, &key, meta);
    Some(Ok(Listed::Object(ListedObject { path, metadata, content })))
}
