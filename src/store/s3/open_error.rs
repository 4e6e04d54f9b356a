//! The error of opening a bucket.

use thiserror::Error;

use crate::config::Bucket;

/// The reason why a bucket cannot be opened.
#[derive(Debug, Error)]
#[error("the bucket {bucket} {why}")]
pub struct OpenBucketError {
    bucket: String,
    why: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl OpenBucketError {
    pub(super) fn new(
        bucket: &Bucket,
        why: &str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let (bucket, why) = (bucket.to_string(), why.to_owned());
        Self { bucket, why, source: Some(Box::new(source)) }
    }

    pub(super) fn without_source(bucket: &Bucket, why: String) -> Self {
        Self { bucket: bucket.to_string(), why, source: None }
    }
}
