//! Locks by name, for any number of names.

use std::hash::{BuildHasher, Hash, RandomState};

use tokio::sync::{Mutex, MutexGuard};

/// Locks by name. Different names may share a lock.
#[derive(Debug)]
pub struct KeyedLocks {
    places: [Mutex<()>; 64],
    hasher: RandomState,
}

impl Default for KeyedLocks {
    fn default() -> Self {
        let places = std::array::from_fn(|_| Mutex::new(()));
        Self { places, hasher: RandomState::new() }
    }
}

impl KeyedLocks {
    /// Waits for the turn at a name, and has it until the guard is dropped.
    pub async fn take(&self, name: &(impl Hash + ?Sized)) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(name) % self.places.len() as u64;
        self.places[place as usize].lock().await
    }
}
