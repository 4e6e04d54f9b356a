//! Locks by name, for any number of names.

use std::hash::{BuildHasher, Hash, RandomState};

use tokio::sync::{Mutex, MutexGuard};

/// Locks by name. Different names may share a lock.
#[derive(Debug)]
pub struct KeyedLocks {
    locks: [Mutex<()>; 64],
    hasher: RandomState,
}

impl Default for KeyedLocks {
    fn default() -> Self {
        let locks = std::array::from_fn(|_| Mutex::new(()));
        Self { locks, hasher: RandomState::new() }
    }
}

impl KeyedLocks {
    /// Waits for the lock of a name, which is held until the guard is dropped.
    pub async fn take(&self, name: &(impl Hash + ?Sized)) -> MutexGuard<'_, ()> {
        let index = self.hasher.hash_one(name) % self.locks.len() as u64;
        self.locks[index as usize].lock().await
    }
}
