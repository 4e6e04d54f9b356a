//! Between looking at an object's last use and deleting it nobody may use it or store it anew: a
//! bucket cannot move it aside, as a directory can, to look once more. Within one process it has to
//! wait. Another process that does either in that moment is not seen, so collection is done long
//! after the last use ([`crate::store::Store::remove`] is asked for nothing younger).

use tokio::sync::{Mutex, MutexGuard};

/// Whose turn it is, by the object's name.
#[derive(Debug)]
pub(super) struct Turns([Mutex<()>; 64]);

impl Turns {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }

    /// The turn for an object, until it is dropped.
    pub(super) async fn of(&self, key: &str) -> MutexGuard<'_, ()> {
        let sum = key.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31) ^ usize::from(byte));
        self.0[sum % self.0.len()].lock().await
    }
}
