//! Counters that many threads increment, and that are read rarely.
//!
//! A counter that two processors increment in turn moves between their caches each time, which takes
//! longer than all other work for metrics in a request. So each thread has its own copy.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Maximum number of shards, to limit memory. Threads that share a shard are only slower.
const MAX_SHARDS: usize = 64;

/// A `T` for each thread, as long as there are fewer threads than shards.
#[derive(Debug)]
pub(super) struct Shards<T>(Box<[Aligned<T>]>);

/// Aligned to two cache lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Aligned<T>(T);

impl<T: Default> Shards<T> {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let count = processors.next_power_of_two().min(MAX_SHARDS);
        Self(std::iter::repeat_with(Aligned::default).take(count).collect())
    }

    /// The shard of the calling thread.
    pub(super) fn own(&self) -> &T {
        // The number of shards is a power of two.
        &self.0[thread_number() & (self.0.len() - 1)].0
    }

    /// Sums a number over all shards.
    pub(super) fn sum(&self, of: impl Fn(&T) -> u64) -> u64 {
        self.0.iter().map(|shard| of(&shard.0)).sum()
    }
}

/// The number of the calling thread, in the order of the first calls.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn the_sum_includes_the_shards_of_all_threads() {
        let shards = Shards::<AtomicU64>::new();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        shards.own().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(shards.sum(|one| one.load(Ordering::Relaxed)), 8000);
    }
}
