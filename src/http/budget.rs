//! What answers may hold while their clients take them: open files and memory.
//!
//! A client decides how fast it takes an answer, and in HTTP/2 how many it takes at a time. So what
//! waits for clients is bounded for all connections together, and never by making one client wait
//! for another: an answer for whose file there is no room opens it again for each part, and every
//! connection has a part of the memory that the others cannot take.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much of a file is read at a time where it is not sent from the file itself.
pub(super) const READ_CHUNK: u64 = 256 * 1024;

/// The number of chunks that wait for the clients of all connections, besides one for each
/// connection: 64 MiB.
const SHARED_CHUNKS: usize = 256;

/// The number of files that are opened for one chunk at a time.
const REOPENED: usize = 16;

/// What all connections share.
#[derive(Debug, Clone)]
pub struct AnswerBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    files: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
    reopened: Semaphore,
}

/// What one connection may use. A clone is the same.
#[derive(Debug, Clone)]
pub struct ConnectionBudget {
    shared: AnswerBudget,
    own: Arc<Own>,
}

/// What no other connection can take.
#[derive(Debug)]
struct Own {
    chunk: Arc<Semaphore>,
    download: Arc<Semaphore>,
}

impl AnswerBudget {
    /// A budget of so many open files.
    pub fn new(files: usize) -> Self {
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(BudgetState {
            files: semaphore(files),
            chunks: semaphore(SHARED_CHUNKS),
            reopened: Semaphore::new(REOPENED),
        }))
    }

    /// The part of a new connection.
    pub fn connection(&self) -> ConnectionBudget {
        let one = || Arc::new(Semaphore::new(1));
        let own = Arc::new(Own { chunk: one(), download: one() });
        ConnectionBudget { shared: self.clone(), own }
    }
}

impl ConnectionBudget {
    /// Room to keep a file open until the permit is dropped, if there is any.
    pub fn file(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.0.files).try_acquire_owned().ok()
    }

    /// Room to open a file for a moment. No client is waited for with this permit.
    pub async fn reopened_file(&self) -> tokio::sync::SemaphorePermit<'_> {
        let permit = self.shared.0.reopened.acquire().await;
        permit.expect("the semaphore is never closed")
    }

    /// Room for a download from elsewhere, which cannot be interrupted, if there is any.
    pub fn download(&self) -> Option<OwnedSemaphorePermit> {
        self.file().or_else(|| Arc::clone(&self.own.download).try_acquire_owned().ok())
    }

    /// Waits for room for a download.
    pub async fn wait_for_download(&self) -> OwnedSemaphorePermit {
        either(&self.shared.0.files, &self.own.download).await
    }

    /// Room for a chunk until the permit is dropped, if there is any.
    pub fn chunk_at_once(&self) -> Option<OwnedSemaphorePermit> {
        let shared = Arc::clone(&self.shared.0.chunks).try_acquire_owned();
        shared.or_else(|_| Arc::clone(&self.own.chunk).try_acquire_owned()).ok()
    }

    /// Waits for room for a chunk, until the permit is dropped.
    pub async fn chunk(&self) -> OwnedSemaphorePermit {
        either(&self.shared.0.chunks, &self.own.chunk).await
    }
}

/// A shared permit, or the connection's own where there is no shared one; whichever is free first.
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
    async fn a_connection_has_its_own_chunk_when_others_have_all_that_are_shared() {
        let budget = AnswerBudget::new(1);
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
    async fn a_connection_has_its_own_download_and_no_own_file() {
        let budget = AnswerBudget::new(1);
        let (first, second) = (budget.connection(), budget.connection());
        let file = first.file();
        assert!(file.is_some() && second.file().is_none());
        let own = second.download();
        assert!(own.is_some() && second.download().is_none());
        drop(file);
        drop(second.wait_for_download().await);
    }
}
