//! Whether new connections wait for a free slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether new connections wait for a free slot. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Contention(Arc<AtomicBool>);

impl Contention {
    pub(super) fn exists(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, exists: bool) {
        self.0.store(exists, Ordering::Relaxed);
    }
}
