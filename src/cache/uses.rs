//! Records uses of objects, so that collections know the least recently used ones.
//!
//! A use is recorded at most once in [`RECORD_EVERY`] per object, and not before the response. The
//! exception are objects that were unused for so long that a collection may be about to remove
//! them: their use is recorded before the response. So either the collection sees the use, or the
//! client learns that the object was removed.

use std::time::{Duration, SystemTime};

use super::Cache;
use crate::nix::CachePath;
use crate::store::{RemoteTrouble, StoreError};

/// How exactly the last use is known.
const RECORD_EVERY: Duration = Duration::from_secs(3600);

impl Cache {
    /// Records the use of an object whose last recorded use was at `last`. Returns false if the
    /// object was removed in the meantime. If uses cannot be recorded, the object is served anyway.
    pub(super) async fn touch_soon(
        &self,
        path: &CachePath,
        last: SystemTime,
    ) -> Result<bool, StoreError> {
        match self.need(path, last).await {
            Err(StoreError::Remote { trouble: RemoteTrouble::Denied, .. }) => {
                Ok(self.store.head(path).await?.is_some())
            }
            kept => kept,
        }
    }

    /// An object that was used at `last`, as far as that is recorded, is needed from now on. False if it
    /// has gone in the meantime.
    pub(super) async fn need(
        &self,
        path: &CachePath,
        last: SystemTime,
    ) -> Result<bool, StoreError> {
        let now = SystemTime::now();
        // A time in the future is as good as now.
        let unused = now.duration_since(last).unwrap_or_default();
        if unused < RECORD_EVERY.min(self.grace / 24) {
            return Ok(true);
        }
        let recorded = || {
            if let CachePath::NarInfo(hash) = path {
                self.hot.used(hash, now);
            }
        };
        // Half of the grace period before it could be removed.
        if unused >= self.grace / 2 {
            let there = self.store.touch_now(path).await?;
            // Not before: who comes meanwhile must not take it for safe.
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
    pub(super) async fn touch_if_present(&self, path: &CachePath) -> Result<bool, StoreError> {
        match self.store.head(path).await? {
            Some(metadata) => self.need(path, metadata.used).await,
            None => Ok(false),
        }
    }
}
