//! Who collects garbage says so in the bucket, so that a second one sees it. It is a courtesy, not
//! a lock: some servers take every write without looking ([`super::probe`]), so two that begin at
//! the same moment may both go on. Nothing is broken then; they do the same work twice.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::bucket::Bucket;
use super::uses::unique;
use crate::store::StoreError;

/// Where it is said.
const KEY: &str = ".nix-stored/lock";

/// A lease that was not renewed for so long is that of one who is gone.
const VALID: Duration = Duration::from_secs(300);

/// How often a lease is renewed.
const RENEW: Duration = Duration::from_secs(60);

/// The lease, until it is dropped.
pub(super) struct Lease {
    bucket: Arc<Bucket>,
    runtime: Handle,
    _renewing: AbortOnDropHandle<()>,
}

/// Takes the lease; none if somebody has it.
pub(super) async fn take(bucket: &Arc<Bucket>) -> Result<Option<Lease>, StoreError> {
    let now = SystemTime::now();
    let fresh = |at| now.duration_since(at).unwrap_or_default() < VALID;
    if bucket.head(KEY).await?.is_some_and(|meta| fresh(meta.modified)) {
        return Ok(None);
    }
    let me = unique();
    write(bucket, &me).await?;
    // Of two that found nothing, the one that wrote last has it.
    if bucket.read(KEY).await?.is_none_or(|holder| holder != me.as_bytes()) {
        return Ok(None);
    }
    let renewing = renew(Arc::clone(bucket), me);
    Ok(Some(Lease {
        bucket: Arc::clone(bucket),
        runtime: Handle::current(),
        _renewing: AbortOnDropHandle::new(tokio::spawn(renewing)),
    }))
}

async fn write(bucket: &Bucket, holder: &str) -> Result<(), StoreError> {
    bucket.put(KEY, holder.to_owned().into(), "text/plain; charset=utf-8").await
}

async fn renew(bucket: Arc<Bucket>, me: String) {
    loop {
        tokio::time::sleep(RENEW).await;
        match bucket.read(KEY).await {
            Ok(holder) if holder.as_deref().is_some_and(|holder| holder != me.as_bytes()) => {
                warn!("somebody else collects garbage in this bucket too; let only one do it");
                return;
            }
            _ => {}
        }
        if let Err(error) = write(&bucket, &me).await {
            let error = &error as &dyn std::error::Error;
            warn!(error, "the lease to collect garbage was not renewed");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let bucket = Arc::clone(&self.bucket);
        let delete = async move {
            if let Err(error) = bucket.delete(KEY).await {
                let error = &error as &dyn std::error::Error;
                warn!(error, "the lease to collect garbage runs out by itself in five minutes");
            }
        };
        // A command ends after this, so it waits.
        match self.runtime.runtime_flavor() {
            RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| self.runtime.block_on(delete));
            }
            _ => drop(self.runtime.spawn(delete)),
        }
    }
}
