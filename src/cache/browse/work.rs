//! Work for web pages, on at most two threads of the lowest priority. An expensive page delays
//! other pages, but no uploads or downloads.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Handle;

use crate::cache::Cache;
use crate::store::background;

/// The maximum number of threads for web pages.
pub(super) const WORKERS: usize = 2;

/// How long a request for a page waits for a free worker.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Too many pages were requested.
#[derive(Debug, Error)]
#[error("too many requests for pages; try again in a moment")]
pub struct TooManyPages;

impl Cache {
    /// Runs `work` for a page, when there is time for it. It may wait for a disk.
    pub async fn work_for_page<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TooManyPages> {
        let turn = self.browse.workers.clone().acquire_owned();
        let turn = tokio::time::timeout(TURN_TIMEOUT, turn).await.map_err(|_| TooManyPages)?;
        let runtime = Handle::current();
        let work = move || {
            let _turn = turn;
            // Some work waits for the store.
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
