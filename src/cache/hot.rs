//! Narinfos that are asked for again and again, in memory.
//!
//! Our own changes to the directory are forgotten here before they are answered. What another
//! process changes is seen within [`FRESH`]: until then an object is served as it was, after that
//! its file is looked at again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::nix::StorePathHash;
use crate::store::{Content, Metadata, Object};

/// How long an object is served without a look at its file.
const FRESH: Duration = Duration::from_secs(3);

/// How many bytes of narinfos are kept, and about how many narinfos that are.
const CAPACITY: u64 = 24 * 1024 * 1024;
const ESTIMATED_ITEMS: usize = 16 * 1024;

/// What an entry takes besides its text.
const OVERHEAD: u64 = 256;

/// Narinfos in memory.
pub(super) struct Hot {
    entries: Cache<StorePathHash, Arc<Entry>, ByLength>,
    epoch: Instant,
    /// How many changes there were, by the beginning of the changed one's name. Who read an object
    /// before a change must not put it here after it.
    changes: [AtomicU64; 64],
}

/// The state in which an object was read.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

struct Entry {
    metadata: Metadata,
    text: Bytes,
    /// When its file was looked at, in milliseconds since the epoch.
    seen: AtomicU64,
}

/// An entry that was found.
pub(super) enum Found {
    /// It can be served.
    Fresh(Object),
    /// It can be served if its file still has this metadata.
    Stale(Metadata),
}

#[derive(Clone)]
struct ByLength;

impl Weighter<StorePathHash, Arc<Entry>> for ByLength {
    fn weight(&self, _: &StorePathHash, entry: &Arc<Entry>) -> u64 {
        entry.text.len() as u64 + OVERHEAD
    }
}

impl Hot {
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
        let metadata = entry.metadata.clone();
        if Duration::from_millis(age) < FRESH {
            let content = Content::Bytes(entry.text.clone());
            return Some(Found::Fresh(Object { metadata, content }));
        }
        Some(Found::Stale(metadata))
    }

    /// The file was looked at, and has not changed.
    pub(super) fn renew(&self, hash: &StorePathHash) -> Option<Object> {
        let entry = self.entries.get(hash)?;
        entry.seen.store(self.now(), Ordering::Relaxed);
        let content = Content::Bytes(entry.text.clone());
        Some(Object { metadata: entry.metadata.clone(), content })
    }

    fn changes(&self, hash: &StorePathHash) -> &AtomicU64 {
        &self.changes[usize::from(hash.as_bytes()[0]) % self.changes.len()]
    }

    /// To be taken before an object is read.
    pub(super) fn ticket(&self, hash: &StorePathHash) -> Ticket {
        Ticket(self.changes(hash).load(Ordering::SeqCst))
    }

    /// Keeps an object that was read after `ticket` was taken.
    pub(super) fn insert(&self, hash: StorePathHash, object: &Object, ticket: Ticket) {
        let Content::Bytes(text) = &object.content else {
            return;
        };
        let (metadata, text) = (object.metadata.clone(), text.clone());
        let seen = AtomicU64::new(self.now());
        self.entries.insert(hash, Arc::new(Entry { metadata, text, seen }));
        // A change between the reading and here has found nothing to forget.
        if self.changes(&hash).load(Ordering::SeqCst) != ticket.0 {
            self.entries.remove(&hash);
        }
    }

    /// The object has changed.
    pub(super) fn forget(&self, hash: &StorePathHash) {
        self.changes(hash).fetch_add(1, Ordering::SeqCst);
        self.entries.remove(hash);
    }
}
