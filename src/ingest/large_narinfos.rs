//! Limits for large narinfos.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::collect::MEMORY_BODY_LIMIT;
use super::pool::joined;

/// Limits the memory and the processor time of narinfos above [`MEMORY_BODY_LIMIT`].
pub(crate) struct LargeNarInfos {
    memory: Arc<Semaphore>,
    parsing: Semaphore,
}

impl LargeNarInfos {
    /// The limit of the texts in memory, in MiB. A parsed narinfo takes several times the length of its
    /// text, and may wait for its NAR.
    const MEMORY: u64 = 64;

    /// The number of narinfos that are parsed at the same time. Parsing takes milliseconds per megabyte,
    /// and more threads would take processor time from other requests.
    const PARSING: usize = 2;

    /// Waits for memory for a text of `length` bytes; a small text needs none.
    pub(crate) async fn reserve(&self, length: u64) -> Option<OwnedSemaphorePermit> {
        if length <= MEMORY_BODY_LIMIT {
            return None;
        }
        let mib = length.div_ceil(1 << 20).min(Self::MEMORY);
        // The semaphore is never closed.
        Arc::clone(&self.memory).acquire_many_owned(mib as u32).await.ok()
    }

    /// Runs `parse` on a text of `length` bytes: in place if the text is small, otherwise on the blocking
    /// pool.
    pub(crate) async fn parse<T: Send + 'static>(
        &self,
        length: usize,
        parse: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if length as u64 <= MEMORY_BODY_LIMIT {
            return parse();
        }
        // The semaphore is never closed.
        let _permit = self.parsing.acquire().await.ok();
        joined(spawn_blocking(parse)).await
    }
}

impl Default for LargeNarInfos {
    fn default() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(Self::MEMORY as usize)),
            parsing: Semaphore::new(Self::PARSING),
        }
    }
}
