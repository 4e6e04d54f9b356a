//! Locks an object against changes by other processes, on servers that ignore conditional writes.
//!
//! A process that wants to change an object writes `.nix-stored/changing/<key>/<time>-<writer>`,
//! and then lists the others. Of two processes, the one that writes later sees the other; so a
//! process that sees no other holds the lock. Otherwise it deletes its entry, waits for a random
//! time, and starts again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::bucket::Bucket;
use super::uses::unique;
use crate::store::{RemoteTrouble, StoreError};

/// The prefix of the lock entries.
pub(super) const FOLDER: &str = ".nix-stored/changing/";

/// A lock that is older than this was left by a killed process. Its holder sends two small
/// requests.
const OUTLIVED: Duration = Duration::from_secs(60);

/// A turn is used no longer than this.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(15);

/// The lock of an object that is being changed, held until it is dropped.
pub(super) struct Turn {
    bucket: Arc<Bucket>,
    ending: TaskTracker,
    name: Option<String>,
    begun: Instant,
}

impl Turn {
    /// Waits for the turn.
    pub(super) async fn take(
        bucket: &Arc<Bucket>,
        ending: &TaskTracker,
        key: &str,
    ) -> Result<Self, StoreError> {
        let folder = format!("{FOLDER}{key}/");
        // When the others were seen first.
        let mut seen = HashMap::<String, Instant>::new();
        let start = Instant::now();
        for tries in 0_u32.. {
            let name = format!("{folder}{}", unique());
            let begun = Instant::now();
            // The entry is deleted even if the caller is cancelled.
            let (bucket_too, ending) = (Arc::clone(bucket), ending.clone());
            let mut turn = Self { bucket: bucket_too, ending, name: Some(name.clone()), begun };
            bucket.put(&name, Bytes::new(), "text/plain; charset=utf-8").await?;
            let there: Vec<String> =
                bucket.list(&folder).map_ok(|(name, _)| name).try_collect().await?;
            let now = Instant::now();
            let mut alone = true;
            for other in there.into_iter().filter(|other| *other != name) {
                let first = *seen.entry(other).or_insert(now);
                alone &= now.duration_since(first) >= OUTLIVED;
            }
            if alone && turn.is_good() {
                return Ok(turn);
            }
            turn.end().await;
            if start.elapsed() > 2 * OUTLIVED {
                break;
            }
            // Of two that came at once each waits for another time.
            let random = RandomState::new().hash_one(tries) % (100 << tries.min(4));
            tokio::time::sleep(Duration::from_millis(20 + random)).await;
        }
        Err(StoreError::Remote {
            doing: "waiting to change",
            key: key.to_owned(),
            trouble: RemoteTrouble::TimedOut,
            source: "other daemons keep changing it".into(),
        })
    }

    /// Whether the lock is still valid.
    pub(super) fn is_good(&self) -> bool {
        self.begun.elapsed() < GOOD_FOR
    }

    /// Releases the lock, so that the next change need not wait.
    async fn end(&mut self) {
        if let Some(name) = self.name.take() {
            end(&self.bucket, &name).await;
        }
    }
}

async fn end(bucket: &Bucket, name: &str) {
    if let Err(error) = bucket.delete(name).await {
        let error = &error as &dyn std::error::Error;
        let seconds = OUTLIVED.as_secs();
        warn!(error, "cannot end a change; the next change of this object waits {seconds} s");
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else {
            return;
        };
        let bucket = Arc::clone(&self.bucket);
        self.ending.spawn(async move { end(&bucket, &name).await });
    }
}
