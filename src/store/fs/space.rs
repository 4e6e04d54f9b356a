//! The disk space that uploads may take.

use std::io;
use std::sync::Arc;

use super::root::Root;
use crate::store::StoreError;

/// The disk space of the store.
#[derive(Debug, Clone)]
pub(super) struct Space {
    root: Arc<Root>,
    /// The number of bytes that stay free.
    reserve: u64,
}

impl Space {
    pub(super) fn new(root: Arc<Root>, reserve: u64) -> Self {
        Self { root, reserve }
    }

    /// Returns the number of free bytes.
    pub(super) fn free(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(self.root.current().fd())?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Refuses an object that would take the disk below its reserve. Without a reserve, the kernel
    /// is not queried: writes fail if the disk is full.
    pub(super) fn check(&self, key: &str, needed: u64) -> Result<(), StoreError> {
        if self.reserve == 0 {
            return Ok(());
        }
        self.check_at_once(key, needed)
    }

    /// Does the same even without a reserve.
    pub(super) fn check_at_once(&self, key: &str, needed: u64) -> Result<(), StoreError> {
        let free =
            self.free().map_err(|e| StoreError::new("measuring the free space for", key, e))?;
        if free < self.reserve.saturating_add(needed) {
            return Err(StoreError::Reserve { free, needed, reserve: self.reserve });
        }
        Ok(())
    }
}
