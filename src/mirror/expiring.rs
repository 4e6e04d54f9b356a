//! A bounded cache whose entries expire.

use std::hash::Hash;
use std::time::{Duration, Instant};

use quick_cache::{UnitWeighter, Weighter};

/// A concurrent cache with a limited number or weight of entries. Each entry has a time to live.
pub(super) struct ExpiringCache<K, V, W = UnitWeighter> {
    entries: quick_cache::sync::Cache<K, ExpiringEntry<V>, W>,
}

/// A value and the time until which it is valid.
#[derive(Clone)]
pub(super) struct ExpiringEntry<V> {
    pub value: V,
    expires: Instant,
}

impl<K: Eq + Hash + Clone, V: Clone> ExpiringCache<K, V> {
    /// Creates a cache of at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> Self {
        Self { entries: quick_cache::sync::Cache::new(capacity) }
    }
}

impl<K: Eq + Hash + Clone, V: Clone, W: Weighter<K, ExpiringEntry<V>> + Clone>
    ExpiringCache<K, V, W>
{
    /// Creates a cache of at most `max_weight`, for about `capacity` entries.
    pub(super) fn with_weighter(capacity: usize, max_weight: u64, weighter: W) -> Self {
        let entries = quick_cache::sync::Cache::with_weighter(capacity, max_weight, weighter);
        Self { entries }
    }

    /// Returns the value of `key`, unless it has expired.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let entry = self.entries.get(key)?;
        (entry.expires > Instant::now()).then_some(entry.value)
    }

    /// Inserts a value that is valid for `ttl`.
    pub(super) fn insert(&self, key: K, value: V, ttl: Duration) {
        self.entries.insert(key, ExpiringEntry { value, expires: Instant::now() + ttl });
    }

    /// Removes the value of `key`.
    pub(super) fn remove(&self, key: &K) {
        self.entries.remove(key);
    }

    /// Returns the value of `key`. If there is none or it has expired, `compute` returns a value
    /// and its time to live. Concurrent callers with the same key wait for the first one.
    pub(super) async fn get_or_compute(
        &self,
        key: &K,
        compute: impl AsyncFnOnce() -> (V, Duration),
    ) -> V {
        loop {
            match self.entries.get_value_or_guard_async(key).await {
                Ok(entry) if entry.expires > Instant::now() => return entry.value,
                Ok(entry) => {
                    self.entries.remove_if(key, |found| found.expires == entry.expires);
                }
                Err(guard) => {
                    let (value, ttl) = compute().await;
                    let entry =
                        ExpiringEntry { value: value.clone(), expires: Instant::now() + ttl };
                    // Fails if the entry was evicted during the computation.
                    let _ = guard.insert(entry);
                    return value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_entry_is_returned_until_it_expires_or_is_removed() {
        let cache = ExpiringCache::new(10);
        cache.insert(1, "one", LONG);
        cache.insert(2, "two", Duration::ZERO);
        assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some("one"), None, None));
        assert_eq!(cache.get_or_compute(&1, async || panic!("the entry is valid")).await, "one");
        assert_eq!(cache.get_or_compute(&2, async || ("again", LONG)).await, "again");
        assert_eq!(cache.get(&2), Some("again"));
        cache.remove(&2);
        assert_eq!(cache.get(&2), None);
    }

    #[tokio::test]
    async fn concurrent_callers_wait_for_the_first_one() {
        let (cache, gate) = (ExpiringCache::new(10), tokio::sync::Notify::new());
        let first = cache.get_or_compute(&1, async || {
            gate.notified().await;
            ("first", LONG)
        });
        let second = cache.get_or_compute(&1, async || ("second", LONG));
        let open = async { gate.notify_one() };
        let (first, second, ()) = tokio::join!(first, second, open);
        assert_eq!((first, second), ("first", "first"));
    }
}
