//! A lock for each NAR that is being requested. The holder of a lock waits for an upstream, so no
//! two NARs share a lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::nix::cache_path::NarName;

type Locks = Arc<Mutex<HashMap<NarName, Arc<tokio::sync::Mutex<()>>>>>;

/// The locks of all NARs that are being requested.
#[derive(Debug, Default)]
pub(super) struct NameLocks(Locks);

/// The lock of one name, held until the value is dropped.
pub(super) struct NameLock {
    locks: Locks,
    name: NarName,
    /// `None` while the lock is awaited, and during `drop`.
    guard: Option<OwnedMutexGuard<()>>,
}

impl NameLocks {
    /// Waits for the lock of `name`. Cancel-safe.
    pub(super) async fn lock(&self, name: NarName) -> NameLock {
        let lock = {
            // The map is consistent after every step, so a panic does not matter.
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(name).or_default())
        };
        // Created before waiting, so that a cancelled waiter removes the entry of the map, too.
        let mut held = NameLock { locks: Arc::clone(&self.0), name, guard: None };
        held.guard = Some(lock.lock_owned().await);
        held
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // The holder and each waiter have a reference besides that of the map.
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn name(number: u8) -> NarName {
        let hash = crate::nix::Sha256Hash::new([number; 32]);
        format!("{}.nar", hash.to_nix32()).parse().unwrap()
    }

    #[tokio::test]
    async fn a_lock_has_one_holder_and_other_names_do_not_wait() {
        let locks = NameLocks::default();
        let held = locks.lock(name(0)).await;
        let others: Vec<_> =
            (1..=100).map(|number| locks.lock(name(number)).now_or_never()).collect();
        assert!(others.iter().all(Option::is_some));
        let mut waiting = Box::pin(locks.lock(name(0)));
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        drop(waiting.await);
        drop(others);
        assert!(locks.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_cancelled_waiter_leaves_no_entry() {
        let locks = NameLocks::default();
        let held = locks.lock(name(0)).await;
        assert!(locks.lock(name(0)).now_or_never().is_none());
        drop(held);
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
