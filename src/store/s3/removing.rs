//! Removing in a bucket what others use and store at the same time.
//!
//! A server has no lock, and many take no notice of conditions on writes. But what was written is seen
//! by whoever looks afterwards, and that is enough (it is Dekker's algorithm):
//!
//! - Who removes says so first, in `.nix-stored/removing/<time>-<writer>` with a key in each line; then
//!   looks for uses; and then deletes what is unused.
//! - Who uses, or stores again, what nobody used for long records the use first; then looks for who
//!   removes it, and waits until those have gone; and then looks whether it is there.
//!
//! Whichever of the two writes later sees the other. So what is acknowledged is not deleted, whether it
//! is a narinfo or a NAR.
//!
//! A collector that was killed leaves what it has said. So nobody waits for longer than
//! [`OUTLIVED`], and no deletion begins later than [`GOOD_FOR`] after it was said.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tracing::warn;

use super::bucket::{Bucket, DELETE_PATIENCE};
use super::listing::Meta;
use super::uses::unique;
use crate::store::{RemoteTrouble, StoreError};

/// Where it is said.
const FOLDER: &str = ".nix-stored/removing/";

/// For how long what was said may be acted on.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(15);

/// What is still there after this time is that of one who is gone. By its own clock: every process
/// counts from when it saw it first.
const OUTLIVED: Duration = Duration::from_secs(60);

// Who is waited for has come to an end, with as much time again for a network that is slow.
const _: () = assert!(OUTLIVED.as_secs() >= 2 * (GOOD_FOR.as_secs() + DELETE_PATIENCE.as_secs()));

/// What is older, by the server's clock and ours, is of no use to anybody.
const LEFT: Duration = Duration::from_secs(3600);

/// How often it is looked again.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is said here of removals, until it is replaced.
#[derive(Debug)]
pub(super) struct Said {
    name: String,
    pub keys: HashSet<String>,
    begun: Instant,
}

impl Said {
    /// Says that `keys` will be removed.
    pub(super) async fn new(
        bucket: &Bucket,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<Self, StoreError> {
        let (name, begun) = (format!("{FOLDER}{}", unique()), Instant::now());
        let keys: HashSet<String> = keys.into_iter().collect();
        let mut text = String::new();
        for key in &keys {
            text.push_str(key);
            text.push('\n');
        }
        bucket.put(&name, text.into(), "text/plain; charset=utf-8").await?;
        Ok(Self { name, keys, begun })
    }

    /// Whether a deletion may still begin.
    pub(super) fn is_good(&self) -> bool {
        self.begun.elapsed() < GOOD_FOR
    }

    /// Takes it back.
    pub(super) async fn take_back(self, bucket: &Bucket) {
        if let Err(error) = bucket.delete(&self.name).await {
            let error = &error as &dyn std::error::Error;
            let seconds = OUTLIVED.as_secs();
            warn!(error, "whoever needs what was removed just now waits for {seconds} s");
        }
    }
}

/// Who removes what, as others see it.
#[derive(Debug)]
pub(super) struct Removers {
    bucket: Arc<Bucket>,
    /// What was said, and when it was seen first.
    seen: Mutex<HashMap<String, Instant>>,
}

/// What was about to be removed at a moment.
#[derive(Debug, Default)]
pub(super) struct Threats(Vec<(String, Bytes)>);

impl Threats {
    /// Who removes `key`.
    fn of(&self, key: &str) -> impl Iterator<Item = &str> {
        let names_it =
            |text: &Bytes| text.split(|&byte| byte == b'\n').any(|it| it == key.as_bytes());
        self.0.iter().filter(move |(_, text)| names_it(text)).map(|(name, _)| name.as_str())
    }
}

impl Removers {
    pub(super) fn new(bucket: Arc<Bucket>) -> Self {
        Self { bucket, seen: Mutex::default() }
    }

    /// What is about to be removed. To be asked for after a use was recorded.
    pub(super) async fn look(&self) -> Result<Threats, StoreError> {
        let names = self.names().await?;
        let read = stream::iter(names).map(async |name| {
            let text = self.bucket.read(&name).await?;
            // It was taken back since.
            Ok::<_, StoreError>(text.map(|text| (name, text)))
        });
        let read = read.buffer_unordered(4).try_filter_map(async |found| Ok(found));
        read.try_collect().await.map(Threats)
    }

    /// Those who may still be at work.
    async fn names(&self) -> Result<Vec<String>, StoreError> {
        let listed = self.bucket.list(FOLDER).map_ok(|(name, _)| name);
        let names: Vec<String> = listed.try_collect().await?;
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|name, _| names.contains(name));
        let is_recent = |name: &String| {
            let first = *seen.entry(name.clone()).or_insert(now);
            now.duration_since(first) < OUTLIVED
        };
        Ok(names.into_iter().filter(is_recent).collect())
    }

    /// Waits until nobody is about to remove `key` who was when it was looked.
    pub(super) async fn wait(&self, key: &str, threats: &Threats) -> Result<(), StoreError> {
        let mut waited_for: HashSet<&str> = threats.of(key).collect();
        let begun = Instant::now();
        while !waited_for.is_empty() {
            if begun.elapsed() > 2 * OUTLIVED {
                return Err(StoreError::Remote {
                    doing: "waiting for who removes",
                    key: key.to_owned(),
                    trouble: RemoteTrouble::TimedOut,
                    source: "it was not taken back".into(),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let names = self.names().await?;
            waited_for.retain(|name| names.iter().any(|it| it == name));
        }
        Ok(())
    }

    /// Clears away what those have left who were killed.
    pub(super) async fn clear(&self) -> Result<(), StoreError> {
        for folder in [FOLDER, super::changing::FOLDER] {
            let there: Vec<(String, Meta)> = self.bucket.list(folder).try_collect().await?;
            let old = |meta: &Meta| meta.modified.elapsed().is_ok_and(|age| age > LEFT);
            for (name, _) in there.iter().filter(|(_, meta)| old(meta)) {
                self.bucket.delete(name).await?;
            }
        }
        Ok(())
    }
}
