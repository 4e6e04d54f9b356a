//! Tests at start which operations the server supports and permits, so that a missing permission
//! does not show first at an upload.

use bytes::Bytes;
use futures_util::TryStreamExt;

use super::bucket::Bucket;
use super::uses::unique;
use super::{OpenError, S3Store};
use crate::store::{RemoteTrouble, StoreError};

/// Where it is tried.
const FOLDER: &str = ".nix-stored/probe/";

/// The result of testing a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whether objects may be stored.
    pub writable: bool,
    /// Whether an upload in parts may be given up; not tried where nothing may be stored.
    pub may_abort: bool,
    /// Whether the server supports conditional writes (`If-Match`, `If-None-Match`). If it does
    /// not, several requests replace one.
    pub looks_before_it_stores: bool,
}

impl S3Store {
    /// Tests every operation that the cache needs.
    pub(super) async fn probe(&self) -> Result<Found, OpenError> {
        let bucket = &self.bucket;
        let told =
            |why, needs, error| OpenError::new(&self.location, &because(why, needs, &error), error);
        let reading = "the bucket must exist, and the key needs the permissions s3:ListBucket and \
                       s3:GetObject";
        can_read(bucket).await.map_err(|error| told("cannot be read", reading, error))?;
        // If deletion is not permitted, one object remains, and not one more with every start.
        let key = format!("{FOLDER}deleted-at-once");
        let storing = "the key needs the permission s3:PutObject";
        let put = bucket.put(&key, Bytes::from_static(b"probe"), "text/plain").await;
        match put {
            Ok(()) => {}
            Err(StoreError::Remote { trouble: RemoteTrouble::Denied, .. }) => {
                return Ok(Found {
                    writable: false,
                    may_abort: false,
                    looks_before_it_stores: false,
                });
            }
            Err(error) => return Err(told("cannot be written to", storing, error)),
        }
        let deleted = bucket.delete(&key).await;
        deleted.map_err(|error| {
            told("does not allow deletions", "the key needs the permission s3:DeleteObject", error)
        })?;
        let looks = self.server_looks().await;
        let looks = looks.map_err(|error| told("cannot be written to", storing, error))?;
        let may_abort = may_abort(bucket, &key).await;
        let may_abort = may_abort.map_err(|error| told("cannot be written to", storing, error))?;
        // What earlier starts have left.
        self.tidy_probes().await;
        Ok(Found { writable: true, may_abort, looks_before_it_stores: looks })
    }

    /// Whether the server supports conditional writes; tested once.
    pub(super) async fn server_looks(&self) -> Result<bool, StoreError> {
        let find_out = async || {
            let key = format!("{FOLDER}{}", unique());
            self.bucket.put(&key, Bytes::from_static(b"probe"), "text/plain").await?;
            let looks = looks_before_it_stores(&self.bucket, &key).await;
            self.bucket.delete(&key).await?;
            looks
        };
        self.looks.get_or_try_init(find_out).await.copied()
    }

    async fn tidy_probes(&self) {
        let left: Result<Vec<(String, _)>, _> = self.bucket.list(FOLDER).try_collect().await;
        let old = |at: std::time::SystemTime| at.elapsed().is_ok_and(|age| age.as_secs() > 3600);
        for (key, _) in left.into_iter().flatten().filter(|(_, meta)| old(meta.modified)) {
            // There is another start.
            let _ = self.bucket.delete(&key).await;
        }
    }
}

/// Adds the probable cause to a reason, and the needed permission if the request was denied.
fn because(why: &str, needs: &str, error: &StoreError) -> String {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut told = String::new();
    while let Some(error) = cause {
        told.push_str(&error.to_string());
        cause = error.source();
    }
    let is = |codes: &[&str]| codes.iter().any(|code| told.contains(code));
    if is(&["RequestTimeTooSkewed", "RequestExpired"]) {
        format!("{why}: the clocks of this machine and of the server differ")
    } else if is(&["SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken"]) {
        format!("{why}: the server rejected the key")
    } else if is(&["NoSuchBucket"]) {
        format!("{why}: the bucket does not exist")
    } else if let StoreError::Remote { trouble: RemoteTrouble::Denied, .. } = error {
        format!("{why}; {needs}")
    } else if let StoreError::Remote { trouble: RemoteTrouble::TimedOut, .. } = error {
        format!("{why}: the server does not respond")
    } else {
        why.to_owned()
    }
}

/// Tries on an object that is there.
async fn looks_before_it_stores(bucket: &Bucket, key: &str) -> Result<bool, StoreError> {
    let text = || Bytes::from_static(b"probe");
    let other = Some("\"00000000000000000000000000000000\"".to_owned());
    if bucket.put_new(key, text()).await? {
        return Ok(false);
    }
    match bucket.put_in_place_of(key, text(), "text/plain", other).await {
        Ok(stored) => Ok(!stored),
        // It does not know the condition.
        Err(StoreError::Remote { trouble: RemoteTrouble::Failed, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn may_abort(bucket: &Bucket, key: &str) -> Result<bool, StoreError> {
    let mut begun = bucket.begin(key, "text/plain").await?;
    match begun.abort().await.map_err(super::bucket::failed("aborting an upload to", key)) {
        Ok(()) => Ok(true),
        Err(StoreError::Remote { trouble: RemoteTrouble::Denied, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that the bucket exists and can be read.
pub(super) async fn can_read(bucket: &Bucket) -> Result<(), StoreError> {
    bucket.list(".nix-stored/").try_next().await?;
    // Without the permission to list, the server answers 403 for absent objects.
    bucket.read(".nix-stored/probe/absent").await?;
    Ok(())
}
