//! Work for web pages, on at most two threads of the lowest priority. An expensive page delays
//! other pages, but no uploads or downloads.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::store::background;

/// The maximum number of threads for web pages.
const WORKERS: usize = 2;

/// The time for which a request for a page waits for a free worker.
const WORKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Too many pages were requested.
#[derive(Debug, Error)]
#[error("too many requests for pages; try again in a moment")]
pub struct TooManyPages;

/// The workers for web pages. Clones share the same workers.
#[derive(Debug, Clone)]
pub(super) struct Workers(Arc<Semaphore>);

impl Default for Workers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WORKERS)))
    }
}

impl Workers {
    /// Runs `work` when a worker is free. It may block on the disk.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TooManyPages> {
        let permit = Arc::clone(&self.0).acquire_owned();
        let permit =
            tokio::time::timeout(WORKER_TIMEOUT, permit).await.map_err(|_| TooManyPages)?;
        let runtime = Handle::current();
        let work = move || {
            let _permit = permit;
            // Some work blocks on futures of the store.
            let _runtime = runtime.enter();
            catch_unwind(AssertUnwindSafe(work))
        };
        match background::run("page", work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(panic)) => resume_unwind(panic),
            // The system has no more threads.
            Err(_) => Err(TooManyPages),
        }
    }
}
