//! Who collects garbage says so in the bucket, so that a second one sees it. It is a courtesy, not
//! a lock: some servers take every write without looking ([`super::probe`]), so two that begin at
//! the same moment may both go on. Nothing is broken then; they do the same work twice.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::bucket::{Bucket, failed};
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
    me: String,
    runtime: Handle,
    _renewing: AbortOnDropHandle<()>,
}

/// Whose the lease is, for people; none if nobody has it.
pub(super) async fn holder(bucket: &Bucket) -> Result<Option<String>, StoreError> {
    let Some(found) = bucket.get(KEY).await? else {
        return Ok(None);
    };
    let renewed = SystemTime::from(found.meta.last_modified);
    let age = SystemTime::now().duration_since(renewed).unwrap_or_default().as_secs();
    let text = found.bytes().await.map_err(failed("reading", KEY))?;
    let text = String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned();
    let who = text.lines().nth(1).unwrap_or("somebody who did not say more");
    Ok(Some(format!("{who}, who renewed it {age} s ago")))
}

/// Takes the lease from whoever has it.
pub(super) async fn break_it(bucket: &Bucket) -> Result<(), StoreError> {
    bucket.delete(KEY).await
}

/// What the lease says of its holder: a name that nobody else has, and one for people.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "a machine without a name" } else { host.trim() };
    format!("{}\nprocess {} on {host}\n", unique(), std::process::id())
}

/// Takes the lease; none if somebody has it.
pub(super) async fn take(bucket: &Arc<Bucket>) -> Result<Option<Lease>, StoreError> {
    let now = SystemTime::now();
    let fresh = |at| now.duration_since(at).unwrap_or_default() < VALID;
    if bucket.head(KEY).await?.is_some_and(|meta| fresh(meta.modified)) {
        return Ok(None);
    }
    let me = identity();
    write(bucket, &me).await?;
    // Of two that found nothing, the one that wrote last has it.
    if bucket.read(KEY).await?.is_none_or(|holder| holder != me.as_bytes()) {
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

/// Ends the lease if it is still this holder's.
async fn give_back(bucket: &Bucket, me: &str) -> Result<(), StoreError> {
    let Some(found) = bucket.get(KEY).await? else {
        return Ok(());
    };
    let etag = found.meta.e_tag.clone();
    let holder = found.bytes().await.map_err(failed("reading", KEY))?;
    if holder != me.as_bytes() {
        warn!("the lease to collect garbage ran out, and somebody else has it");
        return Ok(());
    }
    // One that somebody else takes in this moment stays, where the server looks.
    match bucket.delete_once(KEY, etag.as_deref()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.error),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let bucket = Arc::clone(&self.bucket);
        let me = std::mem::take(&mut self.me);
        let delete = async move {
            if let Err(error) = give_back(&bucket, &me).await {
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
