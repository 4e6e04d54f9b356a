//! The size of a store.

use futures_util::StreamExt;

use crate::nix::CachePath;
use crate::store::{Listed, Store, StoreError};

/// The size of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreSize {
    /// Bytes in all objects.
    pub bytes: u64,
    /// The number of store paths.
    pub paths: u64,
}

impl StoreSize {
    /// Lists a store and adds up the sizes, without reading objects.
    pub async fn measure(store: &Store) -> Result<Self, StoreError> {
        let mut objects = store.list(|_| false);
        let mut size = Self::default();
        while let Some(listed) = objects.next().await {
            if let Listed::Object(object) = listed? {
                size.bytes += object.metadata.size;
                size.paths += u64::from(matches!(object.path, CachePath::NarInfo(_)));
            }
        }
        Ok(size)
    }
}
