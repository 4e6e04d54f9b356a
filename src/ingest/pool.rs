//! Work on the blocking pool.

use tokio::task::{JoinHandle, spawn_blocking};

use super::error::PutError;

/// Runs `work` on the blocking pool. The work starts before the returned future is polled.
pub(crate) fn on_blocking_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PutError> + Send + 'static,
) -> impl Future<Output = Result<T, PutError>> {
    joined(spawn_blocking(work))
}

/// Waits for work on the blocking pool, and resumes its panic.
pub(crate) async fn joined<T>(work: JoinHandle<T>) -> T {
    match work.await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
