//! The daemon's own objects that are not objects of the cache.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;

use super::bucket::{BucketClient, OWN_PREFIX};
use super::lease;
use super::removing::Announcements;
use crate::store::{CollectionLock, StoreError};

/// The private files of a bucket.
#[derive(Debug)]
pub struct S3PrivateFiles {
    bucket: Arc<BucketClient>,
    announcements: Arc<Announcements>,
}

fn key_of(name: &str) -> String {
    format!("{OWN_PREFIX}{name}")
}

impl S3PrivateFiles {
    pub(super) fn new(bucket: Arc<BucketClient>, announcements: Arc<Announcements>) -> Self {
        Self { bucket, announcements }
    }

    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let below = key_of(&format!("{folder}/"));
        let name = |(key, _): (String, _)| key.strip_prefix(&below).map(str::to_owned);
        let listed = self.bucket.list(&below);
        let mut names: Vec<_> =
            listed.try_filter_map(async |found| Ok(name(found))).try_collect().await?;
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) async fn read(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.bucket.read(&key_of(name)).await
    }

    pub(crate) async fn write(&self, name: &str, text: Bytes) -> Result<bool, StoreError> {
        let key = key_of(name);
        let existed = self.bucket.head(&key).await?.is_some();
        self.bucket.put(&key, text, "text/plain; charset=utf-8").await?;
        Ok(existed)
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let key = key_of(name);
        let existed = self.bucket.head(&key).await?.is_some();
        if existed {
            self.bucket.delete(&key).await?;
        }
        Ok(existed)
    }

    pub(crate) async fn lock_collection(&self) -> Result<Option<CollectionLock>, StoreError> {
        let Some(lease) = lease::take(&self.bucket).await? else {
            return Ok(None);
        };
        self.announcements.clear().await?;
        Ok(Some(CollectionLock::new(lease)))
    }

    pub(crate) async fn collection_lock_holder(&self) -> Result<Option<String>, StoreError> {
        lease::holder(&self.bucket).await
    }

    pub(crate) async fn break_collection_lock(&self) -> Result<(), StoreError> {
        lease::break_lock(&self.bucket).await
    }
}
