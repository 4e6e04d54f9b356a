//! Removes objects of a bucket while other daemons use and store the same objects.
//!
//! A server has no locks, and many ignore conditional writes. But a read sees every earlier write,
//! and that is enough (this is Dekker's algorithm):
//!
//! - A collection first announces its removals in `.nix-stored/removing/<time>-<writer>`, one key
//!   per line; then reads the recorded uses; then deletes the unused objects.
//! - A daemon that uses, or stores again, an object that was unused for long first records the use;
//!   then reads the announced removals, and waits until those of this object are withdrawn; then
//!   checks whether the object is there.
//!
//! Whichever of the two writes later sees the other. So no acknowledged object is deleted, neither
//! a narinfo nor a NAR.
//!
//! A killed collection leaves its announcement. So no daemon waits for longer than
//! [`ANNOUNCEMENT_EXPIRY`], and no deletion starts later than [`ANNOUNCEMENT_VALIDITY`] after its
//! announcement.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tracing::warn;

use super::bucket::{BucketClient, DELETE_TIMEOUT};
use super::changing;
use super::meta::Meta;
use super::unique_name::unique_name;
use crate::logging::with_causes;
use crate::store::{RemoteFailure, StoreError};

/// The prefix of the announcements.
const ANNOUNCEMENTS_FOLDER: &str = ".nix-stored/removing/";

/// The time within which an announced deletion may start.
pub(super) const ANNOUNCEMENT_VALIDITY: Duration = Duration::from_secs(15);

/// An announcement that is older than this was left by a killed collection. Every process measures
/// the time from when it first saw the announcement.
const ANNOUNCEMENT_EXPIRY: Duration = Duration::from_secs(60);

// The last deletion of an expired announcement must have ended, even on a network with twice the
// expected delays.
const _: () = assert!(
    ANNOUNCEMENT_EXPIRY.as_secs()
        >= 2 * (ANNOUNCEMENT_VALIDITY.as_secs() + DELETE_TIMEOUT.as_secs())
);

/// The age after which an announcement is deleted, by the server's clock and that of the daemon.
const DELETE_AFTER: Duration = Duration::from_secs(3600);

/// The interval at which a waiting use lists the announcements.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The announced removals of this process.
#[derive(Debug)]
pub(super) struct Announcement {
    name: String,
    pub keys: HashSet<String>,
    started: Instant,
}

impl Announcement {
    /// Announces the removal of `keys`.
    pub(super) async fn new(
        bucket: &BucketClient,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<Self, StoreError> {
        let (name, started) = (format!("{ANNOUNCEMENTS_FOLDER}{}", unique_name()), Instant::now());
        let keys: HashSet<String> = keys.into_iter().collect();
        let mut text = String::new();
        for key in &keys {
            text.push_str(key);
            text.push('\n');
        }
        bucket.put(&name, text.into(), "text/plain; charset=utf-8").await?;
        Ok(Self { name, keys, started })
    }

    /// Whether a deletion may still start.
    pub(super) fn is_valid(&self) -> bool {
        self.started.elapsed() < ANNOUNCEMENT_VALIDITY
    }

    /// Withdraws the announcement.
    pub(super) async fn withdraw(self, bucket: &BucketClient) {
        if let Err(error) = bucket.delete(&self.name).await {
            let seconds = ANNOUNCEMENT_EXPIRY.as_secs();
            warn!(error = %with_causes(&error), "cannot withdraw announced removals; requests for these objects wait up to {seconds} s");
        }
    }
}

/// The announced removals of all processes.
#[derive(Debug)]
pub(super) struct Announcements {
    bucket: Arc<BucketClient>,
    /// The announcements, with the time when they were first seen.
    seen: Mutex<HashMap<String, Instant>>,
}

/// The removals that were announced at one moment.
#[derive(Debug, Default)]
pub(super) struct AnnouncedRemovals(Vec<(String, Bytes)>);

impl AnnouncedRemovals {
    /// Returns the announcements with `key`.
    fn of(&self, key: &str) -> impl Iterator<Item = &str> {
        let has_key =
            |text: &Bytes| text.split(|&byte| byte == b'\n').any(|line| line == key.as_bytes());
        self.0.iter().filter(move |(_, text)| has_key(text)).map(|(name, _)| name.as_str())
    }
}

impl Announcements {
    pub(super) fn new(bucket: Arc<BucketClient>) -> Self {
        Self { bucket, seen: Mutex::default() }
    }

    /// Returns the announced removals. Must be called after a use was recorded.
    pub(super) async fn read(&self) -> Result<AnnouncedRemovals, StoreError> {
        let names = self.names().await?;
        let read = stream::iter(names).map(async |name| {
            let text = self.bucket.read(&name).await?;
            // An announcement without text was withdrawn meanwhile.
            Ok::<_, StoreError>(text.map(|text| (name, text)))
        });
        let read = read.buffer_unordered(4).try_filter_map(async |found| Ok(found));
        read.try_collect().await.map(AnnouncedRemovals)
    }

    /// Returns the announcements of collections that may still be running.
    async fn names(&self) -> Result<Vec<String>, StoreError> {
        let listed = self.bucket.list(ANNOUNCEMENTS_FOLDER).map_ok(|(name, _)| name);
        let names: Vec<String> = listed.try_collect().await?;
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|name, _| names.contains(name));
        let is_recent = |name: &String| {
            let first = *seen.entry(name.clone()).or_insert(now);
            now.duration_since(first) < ANNOUNCEMENT_EXPIRY
        };
        Ok(names.into_iter().filter(is_recent).collect())
    }

    /// Waits until the announcements of `key` in `announced` have been withdrawn.
    pub(super) async fn wait(
        &self,
        key: &str,
        announced: &AnnouncedRemovals,
    ) -> Result<(), StoreError> {
        let mut waited_for: HashSet<&str> = announced.of(key).collect();
        let started = Instant::now();
        while !waited_for.is_empty() {
            if started.elapsed() > 2 * ANNOUNCEMENT_EXPIRY {
                return Err(StoreError::Remote {
                    doing: "waiting for a collection that may remove",
                    key: key.to_owned(),
                    failure: RemoteFailure::TimedOut,
                    source: "the collection did not withdraw its announcement".into(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            let names = self.names().await?;
            waited_for.retain(|name| names.iter().any(|listed| listed == name));
        }
        Ok(())
    }

    /// Deletes the announcements of killed collections.
    pub(super) async fn clear(&self) -> Result<(), StoreError> {
        for folder in [ANNOUNCEMENTS_FOLDER, changing::LOCKS_FOLDER] {
            let entries: Vec<(String, Meta)> = self.bucket.list(folder).try_collect().await?;
            let old = |meta: &Meta| meta.modified.elapsed().is_ok_and(|age| age > DELETE_AFTER);
            for (name, _) in entries.iter().filter(|(_, meta)| old(meta)) {
                self.bucket.delete(name).await?;
            }
        }
        Ok(())
    }
}
