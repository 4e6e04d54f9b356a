//! Limits the open files and the memory of responses while their clients read them.
//!
//! A client decides how fast it reads a response, and in HTTP/2 how many responses it requests at a
//! time. So the resources of waiting responses are limited for all connections together. No client
//! waits for another: a response without a permit for its file opens the file again for each chunk,
//! and each connection has memory of its own for one chunk.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The number of bytes that are read from a file at a time, if the kernel does not send the file.
pub(super) const RESPONSE_CHUNK_SIZE: u64 = 256 * 1024;

/// The number of chunks that wait for the clients of all connections, besides one for each
/// connection: 64 MiB.
const SHARED_CHUNKS: usize = 256;

/// The number of files that are open at a time to read a single chunk.
const REOPENED_FILES_LIMIT: usize = 16;

/// The budget of all connections. Clones share it.
#[derive(Debug, Clone)]
pub struct ResponseBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    files: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
    reopened: Semaphore,
}

/// The budget of one connection. Clones share it.
#[derive(Debug, Clone)]
pub struct ConnectionBudget {
    shared: ResponseBudget,
    own: Arc<ReservedBudget>,
}

/// The permits that belong to one connection.
#[derive(Debug)]
struct ReservedBudget {
    chunk: Arc<Semaphore>,
    download: Arc<Semaphore>,
}

impl ResponseBudget {
    /// Creates a budget of `files` open files.
    pub fn new(files: usize) -> Self {
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(BudgetState {
            files: semaphore(files),
            chunks: semaphore(SHARED_CHUNKS),
            reopened: Semaphore::new(REOPENED_FILES_LIMIT),
        }))
    }

    /// Creates the budget of a new connection.
    pub fn connection(&self) -> ConnectionBudget {
        let one = || Arc::new(Semaphore::new(1));
        let own = Arc::new(ReservedBudget { chunk: one(), download: one() });
        ConnectionBudget { shared: self.clone(), own }
    }
}

impl ConnectionBudget {
    /// Returns a permit to keep a file open, or `None` if none is free.
    pub fn file(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.0.files).try_acquire_owned().ok()
    }

    /// Waits for a permit to open a file and read one chunk. It must not be held while a client
    /// reads.
    pub async fn reopened_file(&self) -> tokio::sync::SemaphorePermit<'_> {
        let permit = self.shared.0.reopened.acquire().await;
        permit.expect("the semaphore is never closed")
    }

    /// Returns a permit for a download from another server, which cannot be interrupted, or `None`
    /// if none is free.
    pub fn download(&self) -> Option<OwnedSemaphorePermit> {
        self.file().or_else(|| Arc::clone(&self.own.download).try_acquire_owned().ok())
    }

    /// Waits for a permit for a download.
    pub async fn wait_for_download(&self) -> OwnedSemaphorePermit {
        either(&self.shared.0.files, &self.own.download).await
    }

    /// Returns a permit for a chunk in memory, or `None` if none is free.
    pub fn chunk_at_once(&self) -> Option<OwnedSemaphorePermit> {
        let shared = Arc::clone(&self.shared.0.chunks).try_acquire_owned();
        shared.or_else(|_| Arc::clone(&self.own.chunk).try_acquire_owned()).ok()
    }

    /// Waits for a permit for a chunk in memory.
    pub async fn chunk(&self) -> OwnedSemaphorePermit {
        either(&self.shared.0.chunks, &self.own.chunk).await
    }
}

/// Waits for a shared permit or the connection's own, whichever is free first.
async fn either(shared: &Arc<Semaphore>, own: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = tokio::select! {
        biased;
        permit = Arc::clone(shared).acquire_owned() => permit,
        permit = Arc::clone(own).acquire_owned() => permit,
    };
    permit.expect("the semaphores are never closed")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_its_own_chunk_when_all_shared_chunks_are_taken() {
        let budget = ResponseBudget::new(1);
        let (greedy, other) = (budget.connection(), budget.connection());
        let mut taken = Vec::new();
        while let Some(permit) = greedy.chunk_at_once() {
            taken.push(permit);
        }
        assert_eq!(taken.len(), SHARED_CHUNKS + 1);
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, greedy.chunk()).await.is_err());
        for _ in 0..3 {
            let own = other.chunk().await;
            assert!(other.chunk_at_once().is_none());
            drop(own);
        }
    }

    #[tokio::test]
    async fn a_connection_has_its_own_download_but_no_file_of_its_own() {
        let budget = ResponseBudget::new(1);
        let (first, second) = (budget.connection(), budget.connection());
        let file = first.file();
        assert!(file.is_some() && second.file().is_none());
        let own = second.download();
        assert!(own.is_some() && second.download().is_none());
        drop(file);
        drop(second.wait_for_download().await);
    }
}
