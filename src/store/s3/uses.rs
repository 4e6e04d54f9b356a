//! Records uses of objects. A bucket has no access times, so uses are recorded in batches, which
//! are objects `.nix-stored/uses/<time>-<writer>`. Each line of a batch has the time in seconds and
//! the key.
//!
//! Each daemon writes its own batches, and reads those of the others when it needs them. A batch is
//! never overwritten, and a merged batch is written before the batches that it replaces are
//! deleted. So no crash and no order of events loses a use. A separate task merges batches, a
//! limited amount at a time.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::bucket::{BucketClient, contradiction, failed};
use super::removing::{AnnouncedRemovals, Announcements};
use super::unique_name::unique_name;
use crate::logging::with_causes;
use crate::store::{RemoteFailure, StoreError};

/// The folder of the batches.
const USES_FOLDER: &str = ".nix-stored/uses";

/// The number of uses that may wait to be recorded. If the queue is full, `note` drops the use and
/// `mark` waits.
const S3_QUEUE_LIMIT: usize = 16 * 1024;

/// A use is held back for at most this long, to record it in one batch with others, unless a request
/// waits for it.
const BATCH_DELAY: Duration = Duration::from_secs(60);

/// The number of small batches at which they are merged into one.
const MERGE_FROM: usize = 64;

/// A batch below this size, in bytes, is small.
const SMALL_BATCH: u64 = 1 << 20;

/// The approximate number of bytes that are merged at a time, and of a merged batch. It is less
/// than a part of an upload, and has the same timeout, so a network that is fast enough for uploads
/// is fast enough for merging.
const MERGE_LIMIT: u64 = 4 << 20;

/// The maximum number of batches that are merged at a time. Finished merges persist even if a later
/// one fails; over a slow network each request takes long.
const MERGE_BATCH_LIMIT: usize = 256;

/// The approximate number of bytes of a use in a batch.
const BYTES_PER_USE: u64 = 80;

/// The maximum number of merges in a row.
const MERGE_ROUNDS: usize = 32;

/// The number of batches that are read at a time.
const CONCURRENT_BATCH_READS: usize = 8;

/// The maximum number of times that the batches are listed, because other daemons merge them
/// meanwhile.
const REFRESH_LISTINGS: usize = 50;

/// The known uses, and the task that records new ones.
#[derive(Debug)]
pub(super) struct S3Uses {
    shared: Arc<UsesState>,
    queue: mpsc::Sender<S3Use>,
    /// The objects whose use is being recorded, with the number of callers that wait for it.
    marking: Mutex<HashMap<String, usize>>,
}

/// A pending record of a use that a request waits for.
struct PendingUse<'a> {
    all: &'a Mutex<HashMap<String, usize>>,
    key: &'a str,
}

impl<'a> PendingUse<'a> {
    fn new(all: &'a Mutex<HashMap<String, usize>>, key: &'a str) -> Self {
        let mut marking = all.lock().unwrap_or_else(PoisonError::into_inner);
        *marking.entry(key.to_owned()).or_default() += 1;
        Self { all, key }
    }
}

impl Drop for PendingUse<'_> {
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
    bucket: Arc<BucketClient>,
    known: Mutex<KnownUses>,
    announcements: Arc<Announcements>,
    /// Held during a merge.
    merging: tokio::sync::Mutex<()>,
    /// Whether the server denied the last record.
    denied: AtomicBool,
}

#[derive(Debug, Default)]
struct KnownUses {
    /// The time of the last use of each object, in seconds, by a hash of its key, because there can
    /// be millions.
    last: HashMap<[u8; 16], u32>,
    hashers: [RandomState; 2],
    /// The names of the batches that were read.
    batches: HashSet<String>,
}

impl KnownUses {
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
    /// The key of the used object; `None` to record the previous uses now.
    key: Option<String>,
    /// The channel of a caller that waits for the record.
    done: Option<oneshot::Sender<Recorded>>,
}

/// The result of recording uses.
#[derive(Clone)]
enum Recorded {
    /// The uses were recorded. Has the removals that were announced by then.
    Done(Arc<AnnouncedRemovals>),
    /// The server denied the record.
    Denied,
    Failed,
}

impl S3Uses {
    pub(super) fn start(bucket: Arc<BucketClient>, announcements: Arc<Announcements>) -> Self {
        let (queue, uses) = mpsc::channel(S3_QUEUE_LIMIT);
        let shared = Arc::new(UsesState {
            bucket,
            known: Mutex::default(),
            announcements,
            merging: tokio::sync::Mutex::default(),
            denied: AtomicBool::new(false),
        });
        // The task ends when the last sender is dropped.
        tokio::spawn(record(Arc::clone(&shared), uses));
        Self { shared, queue, marking: Mutex::default() }
    }

    /// Returns the last recorded use of an object, or `None` while a use is being recorded, which
    /// may be too late to protect the object.
    pub(super) fn last(&self, key: &str) -> Option<SystemTime> {
        let marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        if marking.contains_key(key) { None } else { self.last_recorded(key) }
    }

    /// Returns the last known use of an object.
    pub(super) fn last_recorded(&self, key: &str) -> Option<SystemTime> {
        let second = self.shared.known().last(key)?;
        Some(UNIX_EPOCH + Duration::from_secs(second))
    }

    /// Whether the server denied the last record.
    pub(super) fn are_denied(&self) -> bool {
        self.shared.denied.load(Ordering::Relaxed)
    }

    /// Records soon that an object was used now. Returns immediately.
    pub(super) fn note(&self, key: String) {
        // If the queue is full, the use is dropped: one lost use among thousands does not matter.
        let _ = self.queue.try_send(S3Use { key: Some(key), done: None });
    }

    /// Records the use of an object. When this returns, the use is recorded, and a collection that
    /// was about to remove the object has either done so, or will not do so.
    pub(super) async fn mark(&self, key: String) -> Result<(), StoreError> {
        let _marking = PendingUse::new(&self.marking, &key);
        let announced = self.record(Some(key.clone())).await?;
        self.shared.announcements.wait(&key, &announced).await
    }

    /// Records all pending uses.
    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        self.record(None).await.map(drop)
    }

    async fn record(&self, key: Option<String>) -> Result<Arc<AnnouncedRemovals>, StoreError> {
        let named = key.clone().unwrap_or_else(|| "objects".to_owned());
        let failure = |failure| StoreError::Remote {
            doing: "recording the use of",
            key: named,
            failure,
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
            Recorded::Denied => Err(failure(RemoteFailure::Denied)),
            Recorded::Failed => Err(failure(RemoteFailure::Failed)),
        }
    }

    /// Reads the batches of other daemons.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        self.shared.refresh().await
    }

    /// Merges batches if there are many, or many outdated uses in them.
    pub(super) async fn merge_if_many(&self) {
        self.shared.merge_if_many().await;
    }

    /// Deletes the uses of removed objects, up to the times of their removal in `gone`.
    pub(super) async fn forget(&self, gone: &HashMap<String, u64>) -> Result<(), StoreError> {
        self.shared.forget(gone).await
    }
}

impl UsesState {
    fn known(&self) -> MutexGuard<'_, KnownUses> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        // A list that is made during a merge can miss both the old batches and the new one, because
        // not every server lists a snapshot. So the batches are listed at least twice.
        for pass in 1..=REFRESH_LISTINGS {
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
                .buffer_unordered(CONCURRENT_BATCH_READS);
            let mut all = true;
            while let Some((found, name)) = read.try_next().await? {
                // A missing batch was merged into another one, which may not be in this list.
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
            key: USES_FOLDER.to_owned(),
            failure: RemoteFailure::Failed,
            source: "the recorded uses keep changing".into(),
        })
    }

    async fn merge_if_many(&self) {
        // Another task is merging already.
        let Ok(_merging) = self.merging.try_lock() else {
            return;
        };
        if let Err(error) = self.merge_part_by_part().await {
            warn!(error = %with_causes(&error), "cannot merge the batches of recorded uses");
        }
    }

    async fn merge_part_by_part(&self) -> Result<(), StoreError> {
        for _ in 0..MERGE_ROUNDS {
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
        batches: &[UsesBatch],
        gone: &HashMap<String, u64>,
    ) -> Result<(), StoreError> {
        let merged = Mutex::new(HashMap::<String, u64>::new());
        // Nothing else is awaited until all batches are read, because a response that is not read
        // meanwhile times out.
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
        let rewritten: Vec<Option<String>> =
            read.buffer_unordered(CONCURRENT_BATCH_READS).try_collect().await?;
        self.write_merged(merged.into_inner().unwrap_or_else(PoisonError::into_inner)).await?;
        let rewritten = rewritten.into_iter().flatten();
        let deleted = stream::iter(rewritten).map(async |name| self.bucket.delete(&name).await);
        deleted.buffer_unordered(CONCURRENT_BATCH_READS).try_collect().await
    }

    /// Writes uses in batches of about [`MERGE_LIMIT`].
    async fn write_merged(&self, merged: HashMap<String, u64>) -> Result<(), StoreError> {
        let mut left = merged.into_iter();
        loop {
            let (mut bytes, mut part) = (0, Vec::new());
            while bytes < MERGE_LIMIT
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
            // Later uses may have been recorded since the batches were read.
            part.iter().for_each(|(key, second)| known.used(key, *second));
            known.batches.insert(name);
        }
    }
}

/// A stored batch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UsesBatch {
    name: String,
    size: u64,
}

/// Lists all batches, the oldest first.
async fn batches(bucket: &BucketClient) -> Result<Vec<UsesBatch>, StoreError> {
    let below = format!("{USES_FOLDER}/");
    let is_ours = |name: &str| object_store::path::Path::parse(name).is_ok();
    let found = bucket.list(&below);
    let mut found: Vec<UsesBatch> = found
        .try_filter_map(async |(name, meta)| {
            Ok(is_ours(&name).then_some(UsesBatch { name, size: meta.size }))
        })
        .try_collect()
        .await?;
    found.sort_unstable_by(|one, two| one.name.cmp(&two.name));
    Ok(found)
}

/// Removes the first batches from `batches` and returns them: about [`MERGE_LIMIT`] bytes, and at
/// most [`MERGE_BATCH_LIMIT`] batches.
fn first_part(batches: &mut Vec<UsesBatch>) -> Vec<UsesBatch> {
    let mut size = 0;
    let fits = |batch: &&UsesBatch| {
        size += batch.size;
        size <= MERGE_LIMIT
    };
    let count = batches.iter().take(MERGE_BATCH_LIMIT).take_while(fits).count();
    let count = count.max(1).min(batches.len());
    batches.drain(..count).collect()
}

/// Returns the batches that are worth merging now, given the number of used objects; usually none.
fn worth_merging(mut all: Vec<UsesBatch>, objects: usize) -> Vec<UsesBatch> {
    let total: u64 = all.iter().map(|batch| batch.size).sum();
    let mut small: Vec<UsesBatch> =
        all.iter().filter(|batch| batch.size < SMALL_BATCH).cloned().collect();
    if small.len() >= MERGE_FROM {
        return first_part(&mut small);
    }
    // Above this size, most uses are outdated by later ones.
    if total > 4 * MERGE_LIMIT + 3 * BYTES_PER_USE * objects as u64 {
        first_part(&mut all)
    } else {
        Vec::new()
    }
}

/// Calls `on_use` for every use in a batch. Returns false if the batch is absent.
async fn each_use(
    bucket: &BucketClient,
    name: &str,
    mut on_use: impl FnMut(&str, u64),
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
        lines(&rest[..whole]).for_each(|(key, second)| on_use(key, second));
        rest.drain(..whole);
    }
    if missing > 0 {
        return Err(contradiction(name, "the response has another length"));
    }
    lines(&rest).for_each(|(key, second)| on_use(key, second));
    Ok(true)
}

/// Parses the uses in a batch. Invalid lines are skipped, and reported once in the life of the
/// process.
fn lines(text: &[u8]) -> impl Iterator<Item = (&str, u64)> {
    static REPORTED: Once = Once::new();
    // A time in the future, from a wrong clock, must not protect an object for ever.
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
    // Later times are not valid.
    (!key.is_empty() && second < 1 << 40).then_some((key, second))
}

/// Writes a batch, and returns its name.
async fn write<'a>(
    bucket: &BucketClient,
    uses: impl Iterator<Item = (&'a str, u64)>,
) -> Result<String, StoreError> {
    let mut text = String::new();
    for (key, second) in uses {
        writeln!(text, "{second} {key}").expect("a string takes everything");
    }
    let name = format!("{USES_FOLDER}/{}", unique_name());
    let content_type = "text/plain; charset=utf-8";
    if (text.len() as u64) < SMALL_BATCH {
        bucket.put(&name, text.into(), content_type).await?;
    } else {
        bucket.upload(&name, text.into(), content_type).await?;
    }
    Ok(name)
}

/// Returns the current time in seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Writes the queued uses, all that arrived during the previous write in one batch.
async fn record(shared: Arc<UsesState>, mut uses: mpsc::Receiver<S3Use>) {
    let mut written = 0;
    while let Some(first) = uses.recv().await {
        let mut batch = vec![first];
        gather(&mut batch, &mut uses).await;
        let second = now();
        let keys: HashSet<&str> = batch.iter().filter_map(|used| used.key.as_deref()).collect();
        let is_awaited = batch.iter().any(|used| used.key.is_some() && used.done.is_some());
        let recorded = record_now(&shared, &keys, second, is_awaited).await;
        if matches!(recorded, Recorded::Done(_)) && !keys.is_empty() {
            written += 1;
        }
        for done in batch.into_iter().filter_map(|used| used.done) {
            // The receiver may have been dropped.
            let _ = done.send(recorded.clone());
        }
        if written >= MERGE_FROM {
            written = 0;
            // Merging must not delay the next record.
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.merge_if_many().await });
        }
    }
}

async fn record_now(
    shared: &UsesState,
    keys: &HashSet<&str>,
    second: u64,
    is_awaited: bool,
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
        Err(StoreError::Remote { failure: RemoteFailure::Denied, .. }) => {
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
    if !is_awaited {
        return Recorded::Done(Arc::default());
    }
    // This comes after the record, because a collection announces removals before it reads the
    // uses.
    match shared.announcements.read().await {
        Ok(announced) => Recorded::Done(Arc::new(announced)),
        Err(error) => {
            failed(&error, "were recorded, but the announcements of removals cannot be read")
        }
    }
}

/// Takes the queued uses; if no caller waits for any of them, more are collected for a while.
async fn gather(batch: &mut Vec<S3Use>, uses: &mut mpsc::Receiver<S3Use>) {
    let until = tokio::time::Instant::now() + BATCH_DELAY;
    while batch.iter().all(|used| used.done.is_none()) && batch.len() < S3_QUEUE_LIMIT {
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
    fn invalid_lines_are_ignored_and_future_times_are_the_present() {
        let text: &[u8] =
            b"18446744073709551615 a\n1099511627776 b\n12 c\n\xff d\nx e\n-1 f\n7 \n8\n\
              99999999999 g\n";
        let before = now();
        let found: HashMap<&str, u64> = lines(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found["c"], 12);
        assert!((before..=now()).contains(&found["g"]));
    }

    fn batch(name: u32, size: u64) -> UsesBatch {
        UsesBatch { name: format!("{name:04}"), size }
    }

    #[test]
    fn batches_are_merged_in_bounded_parts() {
        let many: Vec<UsesBatch> = (0..100).map(|name| batch(name, 100_000)).collect();
        assert_eq!(worth_merging(many[..63].to_vec(), 1000), []);
        let part = worth_merging(many.clone(), 1000);
        assert_eq!(part, many[..41]);
        let tiny: Vec<UsesBatch> = (0..1000).map(|name| batch(name, 100)).collect();
        assert_eq!(worth_merging(tiny.clone(), 1000), tiny[..256]);
        // Batches of maximum size are not merged only because there are many of them.
        let large: Vec<UsesBatch> = (0..60).map(|name| batch(name, 4 << 20)).collect();
        assert_eq!(worth_merging(large.clone(), 3_000_000), []);
        // With few used objects, most of the recorded uses are outdated.
        assert_eq!(worth_merging(large.clone(), 10_000), large[..1]);
        let huge = vec![batch(1, 500 << 20)];
        assert_eq!(worth_merging(huge.clone(), 10_000), huge);
    }

    #[test]
    fn a_known_use_takes_few_bytes() {
        let mut known = KnownUses::default();
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
