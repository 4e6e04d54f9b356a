//! Records uses of objects, so that collections know the least recently used ones.
//!
//! A use is recorded at most once in [`RECORD_EVERY`] per object, and not before the response. The
//! exception are objects that were unused for so long that a collection may be about to remove
//! them: their use is recorded before the response. So either the collection sees the use, or the
//! client learns that the object was removed.

use std::time::{Duration, SystemTime};

use super::state::Cache;
use crate::nix::CachePath;
use crate::store::{RemoteFailure, StoreError};

/// The minimum time between two recorded uses of an object.
const RECORD_EVERY: Duration = Duration::from_secs(3600);

impl Cache {
    /// Records the use of an object whose last recorded use was at `last`. Returns false if the
    /// object has been removed since that was read. If uses cannot be recorded, the object is served anyway.
    pub(crate) async fn touch_soon(
        &self,
        path: &CachePath,
        last: SystemTime,
    ) -> Result<bool, StoreError> {
        match self.touch_since(path, last).await {
            Err(StoreError::Remote { failure: RemoteFailure::Denied, .. }) => {
                Ok(self.store.head(path).await?.is_some())
            }
            kept => kept,
        }
    }

    /// Records the use of an object whose last recorded use was at `last`. Returns false if the object
    /// has been removed since that was read.
    pub(super) async fn touch_since(
        &self,
        path: &CachePath,
        last: SystemTime,
    ) -> Result<bool, StoreError> {
        let now = SystemTime::now();
        // A time in the future counts as now.
        let unused = now.duration_since(last).unwrap_or_default();
        if unused < RECORD_EVERY.min(self.grace / 24) {
            return Ok(true);
        }
        let recorded = || {
            if let CachePath::NarInfo(hash) = path {
                self.narinfos.used(hash, now);
            }
        };
        // A collection may remove the object after the grace period: half of it is the safety margin.
        if unused >= self.grace / 2 {
            let there = self.store.touch_now(path).await?;
            // Not before the use is recorded: until then other requests must not rely on it.
            if there {
                recorded();
            }
            return Ok(there);
        }
        recorded();
        self.store.touch(path);
        Ok(true)
    }

    /// Returns whether an object is present; if so, records a use, because the caller depends on it
    /// from now on.
    pub(crate) async fn touch_if_present(&self, path: &CachePath) -> Result<bool, StoreError> {
        match self.store.head(path).await? {
            Some(metadata) => self.touch_since(path, metadata.used).await,
            None => Ok(false),
        }
    }
}
