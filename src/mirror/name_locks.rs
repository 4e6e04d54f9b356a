//! A lock for each NAR that is being requested. Its holder waits for an upstream, so locks are not
//! shared by several names: no NAR waits for another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::nix::cache_path::NarName;

type Locks = Arc<Mutex<HashMap<NarName, Arc<tokio::sync::Mutex<()>>>>>;

#[derive(Debug, Default)]
pub(super) struct NameLocks(Locks);

/// The lock of one name, until it is dropped.
pub(super) struct NameLock {
    locks: Locks,
    name: NarName,
    /// None when it is dropped.
    guard: Option<OwnedMutexGuard<()>>,
}

impl NameLocks {
    pub(super) async fn lock(&self, name: NarName) -> NameLock {
        let lock = {
            // A map is whole after every step.
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(name).or_default())
        };
        // Who does not wait to the end leaves an entry like one who had it.
        let mut held = NameLock { locks: Arc::clone(&self.0), name, guard: None };
        held.guard = Some(lock.lock_owned().await);
        held
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // The map has one, and everybody who has it or waits for it another.
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
    async fn one_name_is_locked_once_and_no_other_waits_for_it() {
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
    async fn who_stops_waiting_leaves_nothing() {
        let locks = NameLocks::default();
        let held = locks.lock(name(0)).await;
        assert!(locks.lock(name(0)).now_or_never().is_none());
        drop(held);
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
