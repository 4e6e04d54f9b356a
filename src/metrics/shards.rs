//! Counters that many threads increment, and that are read rarely.
//!
//! A counter that two processors increment in turns moves between their caches each time, which
//! takes longer than all other counting of a request. So each thread has its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More would only take memory: threads that share one are slower, and not wrong.
const MOST: usize = 64;

/// One `T` for each thread, about.
#[derive(Debug)]
pub(super) struct Shards<T>(Box<[Aligned<T>]>);

/// Two cache lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Aligned<T>(T);

impl<T: Default> Shards<T> {
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let count = processors.next_power_of_two().min(MOST);
        Self(std::iter::repeat_with(Aligned::default).take(count).collect())
    }

    /// That of the calling thread.
    pub(super) fn own(&self) -> &T {
        // There is a power of two of them.
        &self.0[number() & (self.0.len() - 1)].0
    }

    /// The sum of what each of them says.
    pub(super) fn sum(&self, of: impl Fn(&T) -> u64) -> u64 {
        self.0.iter().map(|shard| of(&shard.0)).sum()
    }
}

/// The calling thread's number: threads are counted as they come here.
fn number() -> usize {
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
    fn what_all_threads_count_is_added_up() {
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
