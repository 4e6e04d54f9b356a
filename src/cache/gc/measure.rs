//! How much there is, counted without reading it.

use futures_util::StreamExt;

use crate::cache::Cache;
use crate::nix::CachePath;
use crate::store::{Listed, StoreError};

impl Cache {
    /// Counts what is in the store, so that whoever asks later need not.
    pub(super) async fn measure(&self) -> Result<(), StoreError> {
        let mut objects = self.store.list(|_| false);
        let (mut bytes, mut paths) = (0, 0);
        while let Some(listed) = objects.next().await {
            if let Listed::Object(object) = listed? {
                bytes += object.metadata.size;
                paths += u64::from(matches!(object.path, CachePath::NarInfo(_)));
            }
        }
        self.metrics.store.seen(bytes, paths);
        Ok(())
    }
}
