//! Measures the size of the cache without reading the objects.

use futures_util::StreamExt;

use crate::cache::Cache;
use crate::nix::CachePath;
use crate::store::{Listed, StoreError};

impl Cache {
    /// Measures the store, and updates the metrics.
    pub(super) async fn measure(&self) -> Result<(), StoreError> {
        let mut objects = self.store.list(|_| false);
        let (mut bytes, mut paths) = (0, 0);
        while let Some(listed) = objects.next().await {
            if let Listed::Object(object) = listed? {
                bytes += object.metadata.size;
                paths += u64::from(matches!(object.path, CachePath::NarInfo(_)));
            }
        }
        self.metrics.store.set_totals(bytes, paths);
        Ok(())
    }
}
