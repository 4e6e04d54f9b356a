//! Frequently requested narinfos, in memory.
//!
//! A change by this process removes the entry before the change is acknowledged. A change by
//! another process becomes visible within [`ENTRY_CHECK_INTERVAL`]: until then the entry is served
//! as it was; then its file is checked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::nix::StorePathHash;
use crate::store::{Content, Metadata, Object};

/// The time for which an object is served without checking its file.
const ENTRY_CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// The capacity in bytes, and the estimated number of narinfos in it.
const CAPACITY: u64 = 24 * 1024 * 1024;
const ESTIMATED_ITEMS: usize = 16 * 1024;

/// The memory of an entry besides its text, in bytes.
const ENTRY_OVERHEAD: u64 = 256;

/// A cache of narinfos in memory.
pub(super) struct NarInfoCache {
    entries: Cache<StorePathHash, Arc<Entry>, ByLength>,
    epoch: Instant,
    /// Change counters, sharded by the first byte of the hash. An object that was read before a
    /// change must not be inserted after it.
    changes: [AtomicU64; 64],
}

/// The state of the cache when an object was read.
#[derive(Clone, Copy)]
pub(super) struct ReadEpoch(u64);

struct Entry {
    metadata: Metadata,
    text: Bytes,
    /// The time of the last check of the file, in milliseconds since the epoch.
    seen: AtomicU64,
    /// The last recorded use, in seconds since 1970.
    used: AtomicU64,
}

/// The result of a lookup.
pub(super) enum Found {
    /// It can be served.
    Fresh(Object),
    /// It can be served if its file still has this entity tag.
    Stale(Bytes),
}

impl Entry {
    fn object(&self) -> Object {
        let used = UNIX_EPOCH + Duration::from_secs(self.used.load(Ordering::Relaxed));
        let metadata = Metadata { used, ..self.metadata.clone() };
        Object { metadata, content: Content::Bytes(self.text.clone()) }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[derive(Clone)]
struct ByLength;

impl Weighter<StorePathHash, Arc<Entry>> for ByLength {
    fn weight(&self, _: &StorePathHash, entry: &Arc<Entry>) -> u64 {
        entry.text.len() as u64 + ENTRY_OVERHEAD
    }
}

impl NarInfoCache {
    pub(super) fn new() -> Self {
        let entries = Cache::with_weighter(ESTIMATED_ITEMS, CAPACITY, ByLength);
        let changes = std::array::from_fn(|_| AtomicU64::new(0));
        Self { entries, epoch: Instant::now(), changes }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn get(&self, hash: &StorePathHash) -> Option<Found> {
        let entry = self.entries.get(hash)?;
        let age = self.now().saturating_sub(entry.seen.load(Ordering::Relaxed));
        if Duration::from_millis(age) < ENTRY_CHECK_INTERVAL {
            return Some(Found::Fresh(entry.object()));
        }
        Some(Found::Stale(entry.metadata.etag.clone()))
    }

    /// Marks an entry as checked just now. `used` is the last recorded use of its file.
    pub(super) fn renew(&self, hash: &StorePathHash, used: SystemTime) -> Option<Object> {
        let entry = self.entries.get(hash)?;
        entry.seen.store(self.now(), Ordering::Relaxed);
        entry.used.store(seconds(used), Ordering::Relaxed);
        Some(entry.object())
    }

    /// Marks an entry as used at `now`.
    pub(super) fn used(&self, hash: &StorePathHash, now: SystemTime) {
        if let Some(entry) = self.entries.get(hash) {
            entry.used.store(seconds(now), Ordering::Relaxed);
        }
    }

    fn changes(&self, hash: &StorePathHash) -> &AtomicU64 {
        &self.changes[usize::from(hash.as_bytes()[0]) % self.changes.len()]
    }

    /// Returns the epoch for [`Self::insert`]. Must be called before the object is read.
    pub(super) fn read_epoch(&self, hash: &StorePathHash) -> ReadEpoch {
        ReadEpoch(self.changes(hash).load(Ordering::SeqCst))
    }

    /// Inserts an object that was read after `read_epoch` was taken.
    pub(super) fn insert(&self, hash: StorePathHash, object: &Object, read_epoch: ReadEpoch) {
        let Content::Bytes(text) = &object.content else {
            return;
        };
        // Text from a network may be a slice of a larger buffer, which it would keep in memory.
        let (metadata, text) = (object.metadata.clone(), Bytes::copy_from_slice(text));
        let (seen, used) = (self.now().into(), seconds(metadata.used).into());
        self.entries.insert(hash, Arc::new(Entry { metadata, text, seen, used }));
        // A change between the read and the insertion found no entry to remove.
        if self.changes(&hash).load(Ordering::SeqCst) != read_epoch.0 {
            self.entries.remove(&hash);
        }
    }

    /// Removes an entry, after its object has changed.
    pub(super) fn forget(&self, hash: &StorePathHash) {
        self.changes(hash).fetch_add(1, Ordering::SeqCst);
        self.entries.remove(hash);
    }
}
