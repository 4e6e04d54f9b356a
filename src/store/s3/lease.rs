//! The collection lock in the bucket. It is advisory: some servers ignore conditional writes
//! ([`super::probe`]), so two collections that start at the same moment may both run. They then do
//! the same work twice, without harm.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::bucket::{BucketClient, failed};
use super::unique_name::unique_name;
use crate::logging::with_causes;
use crate::store::StoreError;

/// The key of the lock.
const LOCK_KEY: &str = ".nix-stored/lock";

/// The time without a renewal after which the lock expires.
const LEASE_VALIDITY: Duration = Duration::from_secs(300);

/// The interval between renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

/// The collection lock, held until it is dropped.
pub(super) struct Lease {
    bucket: Arc<BucketClient>,
    me: String,
    runtime: Handle,
    _renewing: AbortOnDropHandle<()>,
}

/// Returns a readable name of the holder, or `None` if the lock is free.
pub(super) async fn holder(bucket: &BucketClient) -> Result<Option<String>, StoreError> {
    let Some(found) = bucket.get(LOCK_KEY).await? else {
        return Ok(None);
    };
    let renewed = SystemTime::from(found.meta.last_modified);
    let age = SystemTime::now().duration_since(renewed).unwrap_or_default().as_secs();
    let text = found.bytes().await.map_err(failed("reading", LOCK_KEY))?;
    let text = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
    let who = text.lines().nth(1).unwrap_or("an unknown process");
    Ok(Some(format!("{who} (renewed the lock {age} s ago)")))
}

/// Breaks the lock.
pub(super) async fn break_lock(bucket: &BucketClient) -> Result<(), StoreError> {
    bucket.delete(LOCK_KEY).await
}

/// The contents of the lock: a unique name of its holder, and a readable one.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "an unnamed machine" } else { host.trim() };
    format!("{}\nprocess {} on {host}\n", unique_name(), std::process::id())
}

/// Takes the lock. Returns `None` if another process holds it.
pub(super) async fn take(bucket: &Arc<BucketClient>) -> Result<Option<Lease>, StoreError> {
    let now = SystemTime::now();
    let fresh = |at| now.duration_since(at).unwrap_or_default() < LEASE_VALIDITY;
    if bucket.head(LOCK_KEY).await?.is_some_and(|meta| fresh(meta.modified)) {
        return Ok(None);
    }
    let me = identity();
    write(bucket, &me).await?;
    // Of two processes that found the lock free, the one that wrote last holds it.
    if bucket.read(LOCK_KEY).await?.is_none_or(|holder| holder != me.as_bytes()) {
        return Ok(None);
    }
    let renewing = renew(Arc::clone(bucket), me.clone());
    Ok(Some(Lease {
        bucket: Arc::clone(bucket),
        me,
        runtime: Handle::current(),
        _renewing: AbortOnDropHandle::new(tokio::spawn(renewing)),
    }))
}

async fn write(bucket: &BucketClient, holder: &str) -> Result<(), StoreError> {
    bucket.put(LOCK_KEY, holder.to_owned().into(), "text/plain; charset=utf-8").await
}

async fn renew(bucket: Arc<BucketClient>, me: String) {
    loop {
        tokio::time::sleep(RENEWAL_INTERVAL).await;
        match bucket.read(LOCK_KEY).await {
            Ok(holder) if holder.as_deref().is_some_and(|holder| holder != me.as_bytes()) => {
                warn!("another process also collects in this bucket; let only one daemon collect");
                return;
            }
            _ => {}
        }
        if let Err(error) = write(&bucket, &me).await {
            warn!(error = %with_causes(&error), "cannot renew the collection lock");
        }
    }
}

/// Releases the lock if this process still holds it.
async fn release(bucket: &BucketClient, me: &str) -> Result<(), StoreError> {
    let Some(found) = bucket.get(LOCK_KEY).await? else {
        return Ok(());
    };
    let etag = found.meta.e_tag.clone();
    let holder = found.bytes().await.map_err(failed("reading", LOCK_KEY))?;
    if holder != me.as_bytes() {
        warn!("the collection lock expired, and another process holds it");
        return Ok(());
    }
    // On servers with conditional writes, this does not delete a lock that another process takes
    // meanwhile.
    match bucket.delete_once(LOCK_KEY, etag.as_deref()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.error),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let bucket = Arc::clone(&self.bucket);
        let me = std::mem::take(&mut self.me);
        let delete = async move {
            if let Err(error) = release(&bucket, &me).await {
                warn!(error = %with_causes(&error), "cannot release the collection lock; it expires in five minutes");
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
