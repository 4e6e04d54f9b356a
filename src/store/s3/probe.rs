//! What a server is like and what it allows is found out at the start, where somebody looks, and
//! not at the first upload.

use bytes::Bytes;
use futures_util::TryStreamExt;

use super::bucket::Bucket;
use super::uses::unique;
use super::{OpenError, S3Store};
use crate::store::{RemoteTrouble, StoreError};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whether objects may be stored.
    pub writable: bool,
    /// Whether the server looks before it stores where it is asked to (`If-None-Match`). Nothing
    /// depends on it.
    pub looks_before_it_stores: bool,
}

impl S3Store {
    /// Tries everything that the cache needs of the bucket.
    pub(super) async fn probe(&self) -> Result<Found, OpenError> {
        let (bucket, failed) = (&self.bucket, |needs| {
            let bucket = self.location.clone();
            move |error| OpenError::new(&bucket, needs, error)
        });
        can_read(bucket).await.map_err(failed(
            "cannot be read; the bucket must be there, and the key needs the rights s3:ListBucket \
             and s3:GetObject",
        ))?;
        let key = format!(".nix-stored/probe/{}", unique());
        match bucket.put_new(&key, Bytes::from_static(b"probe")).await {
            Ok(_) => {}
            Err(StoreError::Remote { trouble: RemoteTrouble::Denied, .. }) => {
                return Ok(Found { writable: false, looks_before_it_stores: false });
            }
            Err(error) => return Err(failed("cannot be written to")(error)),
        }
        let again = bucket.put_new(&key, Bytes::from_static(b"probe")).await;
        let again = again.map_err(failed("cannot be written to"))?;
        bucket
            .delete(&key)
            .await
            .map_err(failed("cannot be kept in order; the key needs the right s3:DeleteObject"))?;
        Ok(Found { writable: true, looks_before_it_stores: !again })
    }
}

/// Whether the bucket is there and can be read.
pub(super) async fn can_read(bucket: &Bucket) -> Result<(), StoreError> {
    bucket.list(".nix-stored/").try_next().await?;
    // Without the right to list, what is absent is forbidden.
    bucket.read(".nix-stored/probe/absent").await?;
    Ok(())
}
