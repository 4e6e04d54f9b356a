//! The size of the store, from full scans and the changes in between.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::proto::MetricFamily;

use super::families::{Sample, gauge};

/// How much is in the store.
#[derive(Debug, Default)]
pub struct StoreNumbers {
    bytes: AtomicI64,
    paths: AtomicI64,
    /// When somebody looked, in seconds since 1970; 0 before the first time.
    seen: AtomicU64,
}

// Each number stands for itself.
const ORDER: Ordering = Ordering::Relaxed;

impl StoreNumbers {
    /// Somebody has looked at everything, and this is what there is.
    pub fn seen(&self, bytes: u64, paths: u64) {
        self.bytes.store(signed(bytes), ORDER);
        self.paths.store(signed(paths), ORDER);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.seen.store(now.as_secs(), ORDER);
    }

    /// Objects came that were not there before.
    pub fn grew(&self, bytes: u64, paths: u64) {
        self.bytes.fetch_add(signed(bytes), ORDER);
        self.paths.fetch_add(signed(paths), ORDER);
    }

    /// Objects went.
    pub fn shrank(&self, bytes: u64, paths: u64) {
        self.bytes.fetch_sub(signed(bytes), ORDER);
        self.paths.fetch_sub(signed(paths), ORDER);
    }

    /// Bytes in all objects, and store paths; none before somebody has looked.
    pub fn known(&self) -> Option<(u64, u64)> {
        // What another process removes is not seen here, and what is stored during a look may be
        // counted or not: so they may fall below nothing.
        let read = |number: &AtomicI64| u64::try_from(number.load(ORDER)).unwrap_or(0);
        (self.seen.load(ORDER) > 0).then(|| (read(&self.bytes), read(&self.paths)))
    }

    pub(super) fn families(&self, free_space: Option<u64>) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        if let Some((bytes, paths)) = self.known() {
            families.extend([
                gauge(
                    "nix_stored_store_bytes",
                    "Size of all objects, from the last full scan (at start and every \
                     NIX_STORED_GC_INTERVAL) and the changes by this process since then.",
                    vec![Sample::plain(bytes)],
                ),
                gauge(
                    "nix_stored_store_paths",
                    "Number of store paths, updated like nix_stored_store_bytes.",
                    vec![Sample::plain(paths)],
                ),
                gauge(
                    "nix_stored_store_seen_timestamp_seconds",
                    "Time of the last full scan.",
                    vec![Sample::plain(self.seen.load(ORDER))],
                ),
            ]);
        }
        families.extend(free_space.map(|bytes| {
            gauge(
                "nix_stored_store_free_bytes",
                "Current free space of the file system of the store.",
                vec![Sample::plain(bytes)],
            )
        }));
        families
    }
}

/// No disk has more than that.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_the_last_look_and_what_came_of_it_since() {
        let store = StoreNumbers::default();
        store.grew(10, 1);
        assert_eq!(store.known(), None);
        store.seen(100, 2);
        store.grew(10, 1);
        store.shrank(40, 2);
        assert_eq!(store.known(), Some((70, 1)));
        store.shrank(100, 2);
        assert_eq!(store.known(), Some((0, 0)));
    }
}
