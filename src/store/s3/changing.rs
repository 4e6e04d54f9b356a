//! Locks an object against changes by other processes, on servers that ignore conditional writes.
//!
//! A process that wants to change an object writes the entry
//! `.nix-stored/changing/<key>/<time>-<writer>`, and then lists the entries of the key. Of two
//! processes, the one that writes later sees the entry of the other. So a process that sees only
//! its own entry holds the lock. Otherwise it deletes its entry, waits for a random time, and
//! starts again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::bucket::BucketClient;
use super::unique_name::unique_name;
use crate::logging::with_causes;
use crate::store::{RemoteFailure, StoreError};

/// The prefix of the lock entries.
pub(super) const LOCKS_FOLDER: &str = ".nix-stored/changing/";

/// The age from which a lock counts as left by a killed process. The holder of a lock sends only
/// two small requests.
const LOCK_EXPIRY: Duration = Duration::from_secs(60);

/// The time for which a lock is valid.
pub(super) const LOCK_VALIDITY: Duration = Duration::from_secs(15);

/// The lock of an object that is being changed, held until it is dropped.
pub(super) struct ChangeLock {
    bucket: Arc<BucketClient>,
    releases: TaskTracker,
    name: Option<String>,
    taken: Instant,
}

impl ChangeLock {
    /// Waits for the lock. Fails after two minutes.
    pub(super) async fn take(
        bucket: &Arc<BucketClient>,
        releases: &TaskTracker,
        key: &str,
    ) -> Result<Self, StoreError> {
        let folder = format!("{LOCKS_FOLDER}{key}/");
        // The other entries, with the time when they were first seen.
        let mut seen = HashMap::<String, Instant>::new();
        let started = Instant::now();
        for tries in 0_u32.. {
            let name = format!("{folder}{}", unique_name());
            let taken = Instant::now();
            // The entry is deleted even if the caller is cancelled.
            let (shared, releases) = (Arc::clone(bucket), releases.clone());
            let mut lock = Self { bucket: shared, releases, name: Some(name.clone()), taken };
            bucket.put(&name, Bytes::new(), "text/plain; charset=utf-8").await?;
            let entries: Vec<String> =
                bucket.list(&folder).map_ok(|(name, _)| name).try_collect().await?;
            let now = Instant::now();
            let mut alone = true;
            for other in entries.into_iter().filter(|other| *other != name) {
                let first = *seen.entry(other).or_insert(now);
                alone &= now.duration_since(first) >= LOCK_EXPIRY;
            }
            if alone && lock.is_valid() {
                return Ok(lock);
            }
            lock.release().await;
            if started.elapsed() > 2 * LOCK_EXPIRY {
                break;
            }
            // Two processes that started at the same time wait for different times.
            let random = RandomState::new().hash_one(tries) % (100 << tries.min(4));
            tokio::time::sleep(Duration::from_millis(20 + random)).await;
        }
        Err(StoreError::Remote {
            doing: "waiting to change",
            key: key.to_owned(),
            failure: RemoteFailure::TimedOut,
            source: "other daemons keep changing it".into(),
        })
    }

    /// Whether the lock is still valid.
    pub(super) fn is_valid(&self) -> bool {
        self.taken.elapsed() < LOCK_VALIDITY
    }

    /// Releases the lock, so that the next change need not wait.
    async fn release(&mut self) {
        if let Some(name) = self.name.take() {
            delete_entry(&self.bucket, &name).await;
        }
    }
}

async fn delete_entry(bucket: &BucketClient, name: &str) {
    if let Err(error) = bucket.delete(name).await {
        let seconds = LOCK_EXPIRY.as_secs();
        warn!(error = %with_causes(&error), "cannot end a change; the next change of this object waits {seconds} s");
    }
}

impl Drop for ChangeLock {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else {
            return;
        };
        let bucket = Arc::clone(&self.bucket);
        self.releases.spawn(async move { delete_entry(&bucket, &name).await });
    }
}
