//! The size of the store, from full scans and the changes in between.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::proto::MetricFamily;

use super::families::{Sample, gauge};

/// Size of the store.
#[derive(Debug, Default)]
pub struct StoreNumbers {
    bytes: AtomicI64,
    paths: AtomicI64,
    /// Time of the last full scan, in seconds since 1970; 0 before the first scan.
    scanned: AtomicU64,
}

// The numbers are independent of each other.
const ORDER: Ordering = Ordering::Relaxed;

impl StoreNumbers {
    /// Sets the totals after a full scan.
    pub fn set_totals(&self, bytes: u64, paths: u64) {
        self.bytes.store(signed(bytes), ORDER);
        self.paths.store(signed(paths), ORDER);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.scanned.store(now.as_secs(), ORDER);
    }

    /// Adds new objects to the totals.
    pub fn grew(&self, bytes: u64, paths: u64) {
        self.bytes.fetch_add(signed(bytes), ORDER);
        self.paths.fetch_add(signed(paths), ORDER);
    }

    /// Subtracts removed objects from the totals.
    pub fn shrank(&self, bytes: u64, paths: u64) {
        self.bytes.fetch_sub(signed(bytes), ORDER);
        self.paths.fetch_sub(signed(paths), ORDER);
    }

    /// Size of all objects in bytes, and number of store paths; `None` before the first full scan.
    pub fn totals(&self) -> Option<(u64, u64)> {
        // The sums can become negative: removals by other processes are not counted, and an object that is
        // stored during a scan may be counted twice or not at all.
        let read = |number: &AtomicI64| u64::try_from(number.load(ORDER)).unwrap_or(0);
        (self.scanned.load(ORDER) > 0).then(|| (read(&self.bytes), read(&self.paths)))
    }

    pub(super) fn families(&self, free_space: Option<u64>) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        if let Some((bytes, paths)) = self.totals() {
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
                    vec![Sample::plain(self.scanned.load(ORDER))],
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

/// No disk has more than `i64::MAX` bytes.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_those_of_the_last_scan_and_the_changes_since_then() {
        let store = StoreNumbers::default();
        store.grew(10, 1);
        assert_eq!(store.totals(), None);
        store.set_totals(100, 2);
        store.grew(10, 1);
        store.shrank(40, 2);
        assert_eq!(store.totals(), Some((70, 1)));
        store.shrank(100, 2);
        assert_eq!(store.totals(), Some((0, 0)));
    }
}
