//! The collection lock.

use std::any::Any;

/// The collection lock, held until it is dropped.
pub struct CollectionLock {
    _guard: Box<dyn Any + Send + Sync>,
}

impl CollectionLock {
    /// Creates a lock that is released when `guard` is dropped.
    pub(crate) fn new(guard: impl Any + Send + Sync) -> Self {
        Self { _guard: Box::new(guard) }
    }
}
