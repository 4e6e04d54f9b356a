//! When objects were used. A bucket has no access times, so uses are kept in objects of our own,
//! `.nix-stored/uses/<time>-<writer>`, many in each: a line is the second and the key.
//!
//! Every daemon writes its own batches and reads those of the others when it needs to know. Nothing
//! is overwritten, and what is merged is written before its parts are deleted, so that no order of
//! events and no crash loses a use.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::bucket::Bucket;
use crate::store::{RemoteTrouble, StoreError};

/// Where the batches are.
const FOLDER: &str = ".nix-stored/uses";

/// How many uses may wait to be recorded. One more that need not be recorded now is left out.
const QUEUE: usize = 16 * 1024;

/// How long a use that nobody waits for may wait for others.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many batches are merged into one when there are so many.
const MERGE_FROM: usize = 64;

/// How many batches are read at a time.
const READERS: usize = 8;

/// The uses that are known, and the task that records more.
#[derive(Debug)]
pub(super) struct Uses {
    bucket: Arc<Bucket>,
    known: Arc<Mutex<Known>>,
    queue: mpsc::Sender<Use>,
}

#[derive(Debug, Default)]
struct Known {
    /// The second of each object's last use.
    last: HashMap<Box<str>, u64>,
    /// Batches that were read.
    batches: HashSet<String>,
}

impl Known {
    fn used(&mut self, key: &str, second: u64) {
        match self.last.get_mut(key) {
            Some(last) => *last = second.max(*last),
            None => drop(self.last.insert(key.into(), second)),
        }
    }
}

struct Use {
    key: String,
    /// Somebody waits for it to be recorded.
    done: Option<oneshot::Sender<bool>>,
}

impl Uses {
    pub(super) fn start(bucket: Arc<Bucket>) -> Self {
        let (queue, uses) = mpsc::channel(QUEUE);
        let known = Arc::default();
        // It ends when the last sender is gone.
        tokio::spawn(record(Arc::clone(&bucket), Arc::clone(&known), uses));
        Self { bucket, known, queue }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When an object was used for the last time, as far as is known here.
    pub(super) fn last(&self, key: &str) -> Option<SystemTime> {
        self.known().last.get(key).map(|second| UNIX_EPOCH + Duration::from_secs(*second))
    }

    /// Records some time soon that an object is used now.
    pub(super) fn note(&self, key: String) {
        // One of so many that it does not matter.
        let _ = self.queue.try_send(Use { key, done: None });
    }

    /// Records that an object is used now. It is recorded when this returns.
    pub(super) async fn mark(&self, key: String) -> Result<(), StoreError> {
        let gone = || StoreError::Remote {
            doing: "recording the use of",
            key: key.clone(),
            trouble: RemoteTrouble::Failed,
            source: "see the warning before".into(),
        };
        let (done, answer) = oneshot::channel();
        let told = Use { key: key.clone(), done: Some(done) };
        self.queue.send(told).await.map_err(|_| gone())?;
        if answer.await.unwrap_or(false) { Ok(()) } else { Err(gone()) }
    }

    /// Learns what the others have recorded.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        let there = batches(&self.bucket).await?;
        let unknown: Vec<_> = {
            let mut known = self.known();
            known.batches.retain(|name| there.contains(name));
            there.into_iter().filter(|name| !known.batches.contains(name)).collect()
        };
        let mut read = stream::iter(unknown)
            .map(async |name| Ok::<_, StoreError>((self.bucket.read(&name).await?, name)))
            .buffer_unordered(READERS);
        while let Some((text, name)) = read.try_next().await? {
            // It was merged into another one since; that is unknown, too, and comes next time.
            let Some(text) = text else { continue };
            let mut known = self.known();
            for (key, second) in lines(&text) {
                known.used(key, second);
            }
            known.batches.insert(name);
        }
        Ok(())
    }

    /// Forgets when objects were used that were removed, at the seconds in `gone`.
    pub(super) async fn forget(&self, gone: &HashMap<String, u64>) -> Result<(), StoreError> {
        merge(&self.bucket, gone, 1).await
    }
}

/// The names of all batches.
async fn batches(bucket: &Bucket) -> Result<Vec<String>, StoreError> {
    let below = format!("{FOLDER}/");
    let is_ours = |name: &str| object_store::path::Path::parse(name).is_ok();
    let names = bucket.list(&below);
    names.try_filter_map(async |(name, _)| Ok(is_ours(&name).then_some(name))).try_collect().await
}

/// The uses in a batch. Lines that are not ours are passed over and reported, once in the life of the
/// process.
fn lines(text: &Bytes) -> impl Iterator<Item = (&str, u64)> {
    static REPORTED: Once = Once::new();
    // A clock that was wrong once must not keep an object for ever.
    let now = now();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.filter_map(move |line| {
        let used = parse_line(line).map(|(key, second)| (key, second.min(now)));
        if used.is_none() {
            REPORTED.call_once(|| {
                let line = String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned();
                warn!(line, "a line among the recorded uses is not a use; it is ignored");
            });
        }
        used
    })
}

fn parse_line(line: &[u8]) -> Option<(&str, u64)> {
    let (second, key) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let second = second.parse().ok()?;
    // Every time that a clock of ours can show.
    (!key.is_empty() && second < 1 << 40).then_some((key, second))
}

/// Keeps the batches few.
pub(super) async fn merge_if_many(bucket: &Bucket) {
    if let Err(error) = merge(bucket, &HashMap::new(), MERGE_FROM).await {
        let error = &error as &dyn std::error::Error;
        warn!(error, "the batches of uses were not merged");
    }
}

/// Merges the batches that there are, if they are so many, without the uses of what is gone since.
/// Whoever does the same at the same time does no harm: each deletes only what it has written anew.
async fn merge(
    bucket: &Bucket,
    gone: &HashMap<String, u64>,
    from: usize,
) -> Result<(), StoreError> {
    let names = batches(bucket).await?;
    if names.len() < from {
        return Ok(());
    }
    let mut merged = HashMap::<String, u64>::new();
    for name in &names {
        let Some(text) = bucket.read(name).await? else {
            // Somebody else merges.
            return Ok(());
        };
        for (key, second) in lines(&text) {
            let last = merged.entry(key.to_owned()).or_default();
            *last = second.max(*last);
        }
    }
    merged.retain(|key, second| gone.get(key).is_none_or(|gone| *second > *gone));
    write(bucket, merged.iter().map(|(key, second)| (key.as_str(), *second))).await?;
    for name in &names {
        bucket.delete(name).await?;
    }
    Ok(())
}

/// Writes a batch, and returns its name.
async fn write<'a>(
    bucket: &Bucket,
    uses: impl Iterator<Item = (&'a str, u64)>,
) -> Result<String, StoreError> {
    let mut text = String::new();
    for (key, second) in uses {
        writeln!(text, "{second} {key}").expect("a string takes everything");
    }
    let name = format!("{FOLDER}/{}", unique());
    bucket.put(&name, text.into(), "text/plain; charset=utf-8").await?;
    Ok(name)
}

/// A name that nobody else takes: time, process and count, with the hasher's seed for the machine.
pub(super) fn unique() -> String {
    use std::hash::{BuildHasher, RandomState};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().hash_one((std::process::id(), count));
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{millis:013}-{random:016x}")
}

/// The present second.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Writes what comes, as many at a time as came while it was busy.
async fn record(bucket: Arc<Bucket>, known: Arc<Mutex<Known>>, mut uses: mpsc::Receiver<Use>) {
    let mut denied = false;
    let mut written = 0;
    while let Some(first) = uses.recv().await {
        let mut batch = vec![first];
        gather(&mut batch, &mut uses).await;
        let second = now();
        let keys: HashSet<&str> = batch.iter().map(|used| used.key.as_str()).collect();
        let recorded = match write(&bucket, keys.iter().map(|key| (*key, second))).await {
            Ok(name) => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                keys.iter().for_each(|key| known.used(key, second));
                known.batches.insert(name);
                written += 1;
                true
            }
            // Who may only read cannot record that; who collects counts by the time of storing.
            Err(StoreError::Remote { trouble: RemoteTrouble::Denied, .. }) => {
                if !std::mem::replace(&mut denied, true) {
                    warn!("uses are not recorded, because nothing may be stored in the bucket");
                }
                true
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "{} uses were not recorded", keys.len());
                false
            }
        };
        for done in batch.into_iter().filter_map(|used| used.done) {
            // Who does not wait any more does not want to know.
            let _ = done.send(recorded);
        }
        if written >= MERGE_FROM {
            written = 0;
            merge_if_many(&bucket).await;
        }
    }
}

/// Takes what is there; where nobody waits for any of it, more may come for a while.
async fn gather(batch: &mut Vec<Use>, uses: &mut mpsc::Receiver<Use>) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while batch.iter().all(|used| used.done.is_none()) && batch.len() < QUEUE {
        match tokio::time::timeout_at(until, uses.recv()).await {
            Ok(Some(used)) => batch.push(used),
            Ok(None) | Err(_) => return,
        }
    }
    while let Ok(used) = uses.try_recv() {
        batch.push(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_use_is_ignored_and_the_future_is_now() {
        let text = Bytes::from_static(
            b"18446744073709551615 a\n1099511627776 b\n12 c\n\xff d\nx e\n-1 f\n7 \n8\n\
              99999999999 g\n",
        );
        let before = now();
        let found: HashMap<&str, u64> = lines(&text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found["c"], 12);
        assert!((before..=now()).contains(&found["g"]));
    }
}
