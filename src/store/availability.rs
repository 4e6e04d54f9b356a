//! The result of checking a store.

use super::error::StoreError;

/// Which operations a store currently supports.
#[derive(Debug)]
pub enum Availability {
    /// Objects can be read and stored.
    ReadWrite,
    /// Objects can be read, but not stored.
    ReadOnly(StoreError),
    /// Objects can be neither read nor stored.
    Unusable(StoreError),
}
