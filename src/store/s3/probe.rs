//! Tests at start which operations the server supports and permits, so that a missing permission is
//! reported before the first upload.

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::sync::OnceCell;

use super::bucket::{BucketClient, failed};
use super::open_error::OpenBucketError;
use super::unique_name::unique_name;
use crate::config;
use crate::logging::with_causes;
use crate::store::{RemoteFailure, StoreError};

/// The prefix of the objects that are written as a test.
const PROBE_FOLDER: &str = ".nix-stored/probe/";

/// The operations that the server supports and permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketCapabilities {
    /// Whether objects may be stored.
    pub writable: bool,
    /// Whether a multipart upload may be aborted; false without a test if nothing may be stored.
    pub may_abort: bool,
    /// Whether the server supports conditional writes (`If-Match`, `If-None-Match`). If it does
    /// not, several requests replace one.
    pub conditional_writes: bool,
}

/// Whether the server supports conditional writes; tested once.
#[derive(Debug, Default)]
pub(super) struct ConditionalWrites(OnceCell<bool>);

impl ConditionalWrites {
    pub(super) async fn are_supported(&self, bucket: &BucketClient) -> Result<bool, StoreError> {
        let test = async || {
            let key = format!("{PROBE_FOLDER}{}", unique_name());
            bucket.put(&key, Bytes::from_static(b"probe"), "text/plain").await?;
            let supported = test_conditional_writes(bucket, &key).await;
            bucket.delete(&key).await?;
            supported
        };
        self.0.get_or_try_init(test).await.copied()
    }
}

/// Tests every operation that the cache needs.
pub(super) async fn probe(
    bucket: &BucketClient,
    location: &config::Bucket,
    conditional_writes: &ConditionalWrites,
) -> Result<BucketCapabilities, OpenBucketError> {
    let failed =
        |why, needs, error| OpenBucketError::new(location, &because(why, needs, &error), error);
    let reading = "the bucket must exist, and the key needs the permissions s3:ListBucket and \
                   s3:GetObject";
    check_readable(bucket).await.map_err(|error| failed("cannot be read", reading, error))?;
    // The key is always the same: without the permission to delete, only one object remains.
    let key = format!("{PROBE_FOLDER}deleted-at-once");
    let storing = "the key needs the permission s3:PutObject";
    match bucket.put(&key, Bytes::from_static(b"probe"), "text/plain").await {
        Ok(()) => {}
        Err(StoreError::Remote { failure: RemoteFailure::Denied, .. }) => {
            return Ok(BucketCapabilities {
                writable: false,
                may_abort: false,
                conditional_writes: false,
            });
        }
        Err(error) => return Err(failed("cannot be written to", storing, error)),
    }
    bucket.delete(&key).await.map_err(|error| {
        failed("does not allow deletions", "the key needs the permission s3:DeleteObject", error)
    })?;
    let not_writable = |error| failed("cannot be written to", storing, error);
    let conditional_writes =
        conditional_writes.are_supported(bucket).await.map_err(not_writable)?;
    let may_abort = test_abort(bucket, &key).await.map_err(not_writable)?;
    delete_old_probes(bucket).await;
    Ok(BucketCapabilities { writable: true, may_abort, conditional_writes })
}

/// Deletes the objects that killed processes left.
async fn delete_old_probes(bucket: &BucketClient) {
    let probes: Result<Vec<(String, _)>, _> = bucket.list(PROBE_FOLDER).try_collect().await;
    let is_old = |at: SystemTime| at.elapsed().is_ok_and(|age| age.as_secs() > 3600);
    for (key, _) in probes.into_iter().flatten().filter(|(_, meta)| is_old(meta.modified)) {
        // If this fails, the next start deletes it.
        let _ = bucket.delete(&key).await;
    }
}

/// Adds the probable cause to a reason, and the needed permission if the request was denied.
fn because(why: &str, needs: &str, error: &StoreError) -> String {
    let text = with_causes(error);
    let is = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    if is(&["RequestTimeTooSkewed", "RequestExpired"]) {
        format!("{why}: the clocks of this machine and of the server differ")
    } else if is(&["SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken"]) {
        format!("{why}: the server rejected the key")
    } else if is(&["NoSuchBucket"]) {
        format!("{why}: the bucket does not exist")
    } else if let StoreError::Remote { failure: RemoteFailure::Denied, .. } = error {
        format!("{why}; {needs}")
    } else if let StoreError::Remote { failure: RemoteFailure::TimedOut, .. } = error {
        format!("{why}: the server does not respond")
    } else {
        why.to_owned()
    }
}

/// Tests conditional writes on the existing object `key`.
async fn test_conditional_writes(bucket: &BucketClient, key: &str) -> Result<bool, StoreError> {
    let text = || Bytes::from_static(b"probe");
    let other = Some("\"00000000000000000000000000000000\"".to_owned());
    if bucket.put_new(key, text()).await? {
        return Ok(false);
    }
    match bucket.put_in_place_of(key, text(), "text/plain", other).await {
        Ok(stored) => Ok(!stored),
        // The server does not support the condition.
        Err(StoreError::Remote { failure: RemoteFailure::Failed, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a multipart upload may be aborted.
async fn test_abort(bucket: &BucketClient, key: &str) -> Result<bool, StoreError> {
    let mut started = bucket.start_multipart(key, "text/plain").await?;
    match started.abort().await.map_err(failed("aborting an upload to", key)) {
        Ok(()) => Ok(true),
        Err(StoreError::Remote { failure: RemoteFailure::Denied, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that the bucket exists and can be read.
pub(super) async fn check_readable(bucket: &BucketClient) -> Result<(), StoreError> {
    bucket.list(".nix-stored/").try_next().await?;
    // Without the permission to list, the server responds with 403 for absent objects.
    bucket.read(".nix-stored/probe/absent").await?;
    Ok(())
}
