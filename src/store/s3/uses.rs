//! Uses of objects. A bucket has no access times, so uses are recorded in the daemon's own objects,
//! `.nix-stored/uses/<time>-<writer>`, many in each: each line has the second and the key.
//!
//! Every daemon writes its own batches, and reads those of the others when it needs them. No batch
//! is overwritten, and a merged batch is written before its parts are deleted, so no order of
//! events and no crash loses a use. A separate task merges the batches, a bounded amount at a time.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::bucket::{Bucket, contradiction, failed};
use super::removing::{AnnouncedRemovals, Announcements};
use super::unique_name::unique_name;
use crate::logging::with_causes;
use crate::store::{RemoteTrouble, StoreError};

/// Where the batches are.
const FOLDER: &str = ".nix-stored/uses";

/// How many uses may wait to be recorded. One more that need not be recorded now is left out.
const QUEUE: usize = 16 * 1024;

/// The maximum time for which a use that no request waits for is held back, to be recorded in one
/// batch with others.
const BATCH_DELAY: Duration = Duration::from_secs(60);

/// The number of small batches at which they are merged into one.
const MERGE_FROM: usize = 64;

/// A batch below this size, in bytes, is small.
const SMALL_BATCH: u64 = 1 << 20;

/// How many bytes of batches are merged at a time, and how many a merged one has, about. Less than a part
/// of an upload has, and a merged batch has as long to be sent: a line that is fast enough for uploads is
/// fast enough for merging.
const PART: u64 = 4 << 20;

/// The maximum number of batches that are merged at a time. Finished merges persist even if a later
/// one fails; over a slow network each request takes long.
const MERGED_AT_A_TIME: usize = 256;

/// How many bytes a use takes in a batch, about.
const LINE: u64 = 80;

/// How many parts are merged in a row at most.
const ROUNDS: usize = 32;

/// How many batches are read at a time.
const READERS: usize = 8;

/// How often batches are listed again that have gone while they were read.
const LISTINGS: usize = 50;

/// The known uses, and the task that records new ones.
#[derive(Debug)]
pub(super) struct S3Uses {
    shared: Arc<UsesState>,
    queue: mpsc::Sender<S3Use>,
    /// The objects whose use is being recorded, and by how many.
    marking: Mutex<HashMap<String, usize>>,
}

/// A pending record of a use that a request waits for.
struct Marking<'a> {
    all: &'a Mutex<HashMap<String, usize>>,
    key: &'a str,
}

impl<'a> Marking<'a> {
    fn new(all: &'a Mutex<HashMap<String, usize>>, key: &'a str) -> Self {
        let mut marking = all.lock().unwrap_or_else(PoisonError::into_inner);
        *marking.entry(key.to_owned()).or_default() += 1;
        Self { all, key }
    }
}

impl Drop for Marking<'_> {
    fn drop(&mut self) {
        let mut marking = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = marking.get_mut(self.key) {
            *count -= 1;
            if *count == 0 {
                marking.remove(self.key);
            }
        }
    }
}

/// The shared state of the tasks.
#[derive(Debug)]
struct UsesState {
    bucket: Arc<Bucket>,
    known: Mutex<Known>,
    announcements: Arc<Announcements>,
    /// Held during a merge.
    merging: tokio::sync::Mutex<()>,
    /// Whether recording was forbidden the last time.
    denied: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// The second of each object's last use, by a hash of its key: there can be millions.
    last: HashMap<[u8; 16], u32>,
    hashers: [RandomState; 2],
    /// Batches that were read.
    batches: HashSet<String>,
}

impl Known {
    fn hash(&self, key: &str) -> [u8; 16] {
        let mut hash = [0; 16];
        for (half, hasher) in hash.chunks_exact_mut(8).zip(&self.hashers) {
            half.copy_from_slice(&hasher.hash_one(key).to_ne_bytes());
        }
        hash
    }

    fn used(&mut self, key: &str, second: u64) {
        let second = u32::try_from(second).unwrap_or(u32::MAX);
        let last = self.last.entry(self.hash(key)).or_default();
        *last = second.max(*last);
    }

    fn last(&self, key: &str) -> Option<u64> {
        self.last.get(&self.hash(key)).map(|second| u64::from(*second))
    }

    fn forget(&mut self, key: &str, gone: u64) {
        let hash = self.hash(key);
        if self.last.get(&hash).is_some_and(|last| u64::from(*last) <= gone) {
            self.last.remove(&hash);
        }
    }
}

struct S3Use {
    /// None where what came before shall be recorded now, and that is all.
    key: Option<String>,
    /// The channel of a caller that waits for the record.
    done: Option<oneshot::Sender<Recorded>>,
}

/// The result of recording uses.
#[derive(Clone)]
enum Recorded {
    /// It is done; and this was about to be removed afterwards.
    Done(Arc<AnnouncedRemovals>),
    /// Nothing may be stored.
    Denied,
    Failed,
}

impl S3Uses {
    pub(super) fn start(bucket: Arc<Bucket>, announcements: Arc<Announcements>) -> Self {
        let (queue, uses) = mpsc::channel(QUEUE);
        let shared = Arc::new(UsesState {
            bucket,
            known: Mutex::default(),
            announcements,
            merging: tokio::sync::Mutex::default(),
            denied: AtomicBool::new(false),
        });
        // It ends when the last sender is gone.
        tokio::spawn(record(Arc::clone(&shared), uses));
        Self { shared, queue, marking: Mutex::default() }
    }

    /// When an object was used for the last time, as far as that can be relied on here: a use that is
    /// being recorded may turn out to be too late.
    pub(super) fn last(&self, key: &str) -> Option<SystemTime> {
        let marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        if marking.contains_key(key) { None } else { self.last_recorded(key) }
    }

    /// When an object was used for the last time, as far as is known here.
    pub(super) fn last_recorded(&self, key: &str) -> Option<SystemTime> {
        let second = self.shared.known().last(key)?;
        Some(UNIX_EPOCH + Duration::from_secs(second))
    }

    /// Whether the server did not let us record the last uses.
    pub(super) fn are_denied(&self) -> bool {
        self.shared.denied.load(Ordering::Relaxed)
    }

    /// Records some time soon that an object is used now.
    pub(super) fn note(&self, key: String) {
        // The queue is full, and one lost use of so many does not matter.
        let _ = self.queue.try_send(S3Use { key: Some(key), done: None });
    }

    /// Records the use of an object. When this returns, the use is recorded, and a collection that
    /// was about to remove the object has either done so, or will not do so.
    pub(super) async fn mark(&self, key: String) -> Result<(), StoreError> {
        let _marking = Marking::new(&self.marking, &key);
        let announced = self.record(Some(key.clone())).await?;
        self.shared.announcements.wait(&key, &announced).await
    }

    /// Records all pending uses.
    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        self.record(None).await.map(drop)
    }

    async fn record(&self, key: Option<String>) -> Result<Arc<AnnouncedRemovals>, StoreError> {
        let named = key.clone().unwrap_or_else(|| "objects".to_owned());
        let trouble = |trouble| StoreError::Remote {
            doing: "recording the use of",
            key: named,
            trouble,
            source: "see the previous warning".into(),
        };
        let (done, answer) = oneshot::channel();
        let sent = self.queue.send(S3Use { key, done: Some(done) }).await;
        let recorded = match sent {
            Ok(()) => answer.await.unwrap_or(Recorded::Failed),
            Err(_) => Recorded::Failed,
        };
        match recorded {
            Recorded::Done(announced) => Ok(announced),
            Recorded::Denied => Err(trouble(RemoteTrouble::Denied)),
            Recorded::Failed => Err(trouble(RemoteTrouble::Failed)),
        }
    }

    /// Learns what the others have recorded.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        self.shared.refresh().await
    }

    /// Keeps the batches few, and small together.
    pub(super) async fn merge_if_many(&self) {
        self.shared.merge_if_many().await;
    }

    /// Forgets when objects were used that were removed, at the seconds in `gone`.
    pub(super) async fn forget(&self, gone: &HashMap<String, u64>) -> Result<(), StoreError> {
        self.shared.forget(gone).await
    }
}

impl UsesState {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        // A list that is made while batches are merged can miss the old ones and the new one. Not every
        // server lists what there is at one moment, nor in order; so it is listed once more.
        for pass in 1..=LISTINGS {
            let there = batches(&self.bucket).await?;
            let unknown: Vec<_> = {
                let mut known = self.known();
                let there: HashSet<&str> = there.iter().map(|batch| batch.name.as_str()).collect();
                known.batches.retain(|name| there.contains(name.as_str()));
                let unknown = there.into_iter().filter(|name| !known.batches.contains(*name));
                unknown.map(str::to_owned).collect()
            };
            let mut read = stream::iter(unknown)
                .map(async |name| {
                    let used = |key: &str, second| self.known().used(key, second);
                    Ok::<_, StoreError>((each_use(&self.bucket, &name, used).await?, name))
                })
                .buffer_unordered(READERS);
            let mut all = true;
            while let Some((found, name)) = read.try_next().await? {
                // It was merged into another one, which is not in this list.
                all &= found;
                if found {
                    self.known().batches.insert(name);
                }
            }
            if all && pass > 1 {
                return Ok(());
            }
        }
        Err(StoreError::Remote {
            doing: "reading",
            key: FOLDER.to_owned(),
            trouble: RemoteTrouble::Failed,
            source: "the recorded uses keep changing".into(),
        })
    }

    async fn merge_if_many(&self) {
        // Another task is merging for all.
        let Ok(_merging) = self.merging.try_lock() else {
            return;
        };
        if let Err(error) = self.merge_part_by_part().await {
            warn!(error = %with_causes(&error), "cannot merge the batches of recorded uses");
        }
    }

    async fn merge_part_by_part(&self) -> Result<(), StoreError> {
        for _ in 0..ROUNDS {
            let part = worth_merging(batches(&self.bucket).await?, self.known().last.len());
            if part.is_empty() {
                return Ok(());
            }
            self.refresh().await?;
            self.rewrite(&part, &HashMap::new()).await?;
        }
        Ok(())
    }

    async fn forget(&self, gone: &HashMap<String, u64>) -> Result<(), StoreError> {
        let _merging = self.merging.lock().await;
        self.refresh().await?;
        {
            let mut known = self.known();
            gone.iter().for_each(|(key, second)| known.forget(key, *second));
        }
        let mut rest = batches(&self.bucket).await?;
        while !rest.is_empty() {
            let part = first_part(&mut rest);
            self.rewrite(&part, gone).await?;
        }
        Ok(())
    }

    /// Writes the uses of these batches into a new batch, without outdated uses and those of
    /// removed objects, and deletes the old batches. Concurrent merges by other daemons are
    /// harmless: each deletes only the batches that it has merged.
    async fn rewrite(
        &self,
        batches: &[Batch],
        gone: &HashMap<String, u64>,
    ) -> Result<(), StoreError> {
        let merged = Mutex::new(HashMap::<String, u64>::new());
        // Nothing else is awaited until all are read: an answer that is not read meanwhile times out.
        let names: Vec<String> = batches.iter().map(|batch| batch.name.clone()).collect();
        let read = stream::iter(names).map(async |name| {
            let add = |key: &str, second: u64| {
                let is_gone = gone.get(key).is_some_and(|gone| second <= *gone);
                // All known uses are recorded, so a later use is in another batch.
                let is_old = self.known().last(key).is_some_and(|last| second < last);
                if is_gone || is_old {
                    return;
                }
                let mut merged = merged.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(last) = merged.get_mut(key) {
                    *last = second.max(*last);
                } else {
                    merged.insert(key.to_owned(), second);
                }
            };
            // Another daemon has merged the missing batch.
            let found = each_use(&self.bucket, &name, add).await?;
            Ok::<_, StoreError>(found.then_some(name))
        });
        let rewritten: Vec<Option<String>> = read.buffer_unordered(READERS).try_collect().await?;
        self.write_merged(merged.into_inner().unwrap_or_else(PoisonError::into_inner)).await?;
        let rewritten = rewritten.into_iter().flatten();
        let deleted = stream::iter(rewritten).map(async |name| self.bucket.delete(&name).await);
        deleted.buffer_unordered(READERS).try_collect().await
    }

    /// Writes uses in batches of about [`PART`].
    async fn write_merged(&self, merged: HashMap<String, u64>) -> Result<(), StoreError> {
        let mut left = merged.into_iter();
        loop {
            let (mut bytes, mut part) = (0, Vec::new());
            while bytes < PART
                && let Some((key, second)) = left.next()
            {
                bytes += key.len() as u64 + 12;
                part.push((key, second));
            }
            if part.is_empty() {
                return Ok(());
            }
            let uses = part.iter().map(|(key, second)| (key.as_str(), *second));
            let name = write(&self.bucket, uses).await?;
            let mut known = self.known();
            // Some of it can have been recorded since all was read.
            part.iter().for_each(|(key, second)| known.used(key, *second));
            known.batches.insert(name);
        }
    }
}

/// A stored batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    name: String,
    size: u64,
}

/// All batches, the oldest first.
async fn batches(bucket: &Bucket) -> Result<Vec<Batch>, StoreError> {
    let below = format!("{FOLDER}/");
    let is_ours = |name: &str| object_store::path::Path::parse(name).is_ok();
    let found = bucket.list(&below);
    let mut found: Vec<Batch> = found
        .try_filter_map(async |(name, meta)| {
            Ok(is_ours(&name).then_some(Batch { name, size: meta.size }))
        })
        .try_collect()
        .await?;
    found.sort_unstable_by(|one, two| one.name.cmp(&two.name));
    Ok(found)
}

/// Takes the first ones, about [`PART`] together, and no more than [`MERGED_AT_A_TIME`].
fn first_part(batches: &mut Vec<Batch>) -> Vec<Batch> {
    let mut size = 0;
    let fits = |batch: &&Batch| {
        size += batch.size;
        size <= PART
    };
    let count = batches.iter().take(MERGED_AT_A_TIME).take_while(fits).count();
    let count = count.max(1).min(batches.len());
    batches.drain(..count).collect()
}

/// Returns the batches that are worth merging now, given the number of used objects; usually none.
fn worth_merging(mut all: Vec<Batch>, objects: usize) -> Vec<Batch> {
    let total: u64 = all.iter().map(|batch| batch.size).sum();
    let mut small: Vec<Batch> =
        all.iter().filter(|batch| batch.size < SMALL_BATCH).cloned().collect();
    if small.len() >= MERGE_FROM {
        return first_part(&mut small);
    }
    // Most of it is recorded later once more.
    if total > 4 * PART + 3 * LINE * objects as u64 { first_part(&mut all) } else { Vec::new() }
}

/// Calls `hear` for every use in a batch. Returns false if the batch is absent.
async fn each_use(
    bucket: &Bucket,
    name: &str,
    mut hear: impl FnMut(&str, u64),
) -> Result<bool, StoreError> {
    let Some(found) = bucket.get(name).await? else {
        return Ok(false);
    };
    let mut missing = found.meta.size;
    let (mut chunks, mut rest) = (found.into_stream(), Vec::new());
    while let Some(chunk) = chunks.try_next().await.map_err(failed("reading", name))? {
        missing = missing.saturating_sub(chunk.len() as u64);
        rest.extend_from_slice(&chunk);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        lines(&rest[..whole]).for_each(|(key, second)| hear(key, second));
        rest.drain(..whole);
    }
    if missing > 0 {
        return Err(contradiction(name, "the response has another length"));
    }
    lines(&rest).for_each(|(key, second)| hear(key, second));
    Ok(true)
}

/// Parses the uses in a batch. Invalid lines are skipped, and reported once in the life of the
/// process.
fn lines(text: &[u8]) -> impl Iterator<Item = (&str, u64)> {
    static REPORTED: Once = Once::new();
    // A clock that was wrong once must not keep an object for ever.
    let now = now();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.filter_map(move |line| {
        let used = parse_line(line).map(|(key, second)| (key, second.min(now)));
        if used.is_none() {
            REPORTED.call_once(|| {
                let line = String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned();
                warn!(line, "ignored an invalid line among the recorded uses");
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

/// Writes a batch, and returns its name.
async fn write<'a>(
    bucket: &Bucket,
    uses: impl Iterator<Item = (&'a str, u64)>,
) -> Result<String, StoreError> {
    let mut text = String::new();
    for (key, second) in uses {
        writeln!(text, "{second} {key}").expect("a string takes everything");
    }
    let name = format!("{FOLDER}/{}", unique_name());
    let content_type = "text/plain; charset=utf-8";
    if (text.len() as u64) < SMALL_BATCH {
        bucket.put(&name, text.into(), content_type).await?;
    } else {
        bucket.upload(&name, text.into(), content_type).await?;
    }
    Ok(name)
}

/// The present second.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Writes what comes, as many at a time as came while it was busy.
async fn record(shared: Arc<UsesState>, mut uses: mpsc::Receiver<S3Use>) {
    let mut written = 0;
    while let Some(first) = uses.recv().await {
        let mut batch = vec![first];
        gather(&mut batch, &mut uses).await;
        let second = now();
        let keys: HashSet<&str> = batch.iter().filter_map(|used| used.key.as_deref()).collect();
        let somebody_waits = batch.iter().any(|used| used.key.is_some() && used.done.is_some());
        let recorded = record_now(&shared, &keys, second, somebody_waits).await;
        if matches!(recorded, Recorded::Done(_)) && !keys.is_empty() {
            written += 1;
        }
        for done in batch.into_iter().filter_map(|used| used.done) {
            // The receiver may have been dropped.
            let _ = done.send(recorded.clone());
        }
        if written >= MERGE_FROM {
            written = 0;
            // No caller waits for that.
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.merge_if_many().await });
        }
    }
}

async fn record_now(
    shared: &UsesState,
    keys: &HashSet<&str>,
    second: u64,
    somebody_waits: bool,
) -> Recorded {
    if keys.is_empty() {
        return Recorded::Done(Arc::default());
    }
    let failed = |error: &StoreError, what| {
        warn!(error = %with_causes(error), "{} uses {what}", keys.len());
        Recorded::Failed
    };
    match write(&shared.bucket, keys.iter().map(|key| (*key, second))).await {
        Ok(name) => {
            shared.denied.store(false, Ordering::Relaxed);
            let mut known = shared.known();
            keys.iter().for_each(|key| known.used(key, second));
            known.batches.insert(name);
        }
        Err(StoreError::Remote { trouble: RemoteTrouble::Denied, .. }) => {
            if !shared.denied.swap(true, Ordering::Relaxed) {
                warn!(
                    "uses cannot be recorded, because the key may not write to the bucket; \
                     collections by other daemons may remove the objects served here"
                );
            }
            return Recorded::Denied;
        }
        Err(error) => return failed(&error, "were not recorded"),
    }
    if !somebody_waits {
        return Recorded::Done(Arc::default());
    }
    // Not earlier: a collection announces removals before it reads the uses.
    match shared.announcements.read().await {
        Ok(announced) => Recorded::Done(Arc::new(announced)),
        Err(error) => failed(&error, "were recorded too late to protect their objects"),
    }
}

/// Takes the queued uses; if no caller waits for any of them, more are collected for a while.
async fn gather(batch: &mut Vec<S3Use>, uses: &mut mpsc::Receiver<S3Use>) {
    let until = tokio::time::Instant::now() + BATCH_DELAY;
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
        let text: &[u8] =
            b"18446744073709551615 a\n1099511627776 b\n12 c\n\xff d\nx e\n-1 f\n7 \n8\n\
              99999999999 g\n";
        let before = now();
        let found: HashMap<&str, u64> = lines(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found["c"], 12);
        assert!((before..=now()).contains(&found["g"]));
    }

    fn batch(name: u32, size: u64) -> Batch {
        Batch { name: format!("{name:04}"), size }
    }

    #[test]
    fn batches_are_merged_in_bounded_parts() {
        let many: Vec<Batch> = (0..100).map(|name| batch(name, 100_000)).collect();
        assert_eq!(worth_merging(many[..63].to_vec(), 1000), []);
        let part = worth_merging(many.clone(), 1000);
        assert_eq!(part, many[..41]);
        let tiny: Vec<Batch> = (0..1000).map(|name| batch(name, 100)).collect();
        assert_eq!(worth_merging(tiny.clone(), 1000), tiny[..256]);
        // Batches of maximum size are not merged, whatever their total size.
        let large: Vec<Batch> = (0..60).map(|name| batch(name, 4 << 20)).collect();
        assert_eq!(worth_merging(large.clone(), 3_000_000), []);
        // But not if most of it has been recorded anew.
        assert_eq!(worth_merging(large.clone(), 10_000), large[..1]);
        let huge = vec![batch(1, 500 << 20)];
        assert_eq!(worth_merging(huge.clone(), 10_000), huge);
    }

    #[test]
    fn what_is_known_of_an_object_takes_few_bytes() {
        let mut known = Known::default();
        known.used("a", 7);
        known.used("a", 5);
        assert_eq!((known.last("a"), known.last("b")), (Some(7), None));
        known.forget("a", 6);
        assert_eq!(known.last("a"), Some(7));
        known.forget("a", 7);
        assert_eq!(known.last("a"), None);
        assert_eq!(size_of::<([u8; 16], u32)>(), 20);
    }
}
