//! Work for pages: off the reactor, and little of it at a time. Whatever a page costs, it costs other
//! visitors at most, and never those who upload or substitute.

use std::time::Duration;

use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::cache::Cache;

/// How much work for pages is done at a time.
pub(super) const WORKERS: usize = 2;

/// How long a request for a page waits for a free worker.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Too many pages were asked for.
#[derive(Debug, Error)]
#[error("more pages are asked for than can be made; try again in a moment")]
pub struct TooManyPages;

impl Cache {
    /// Runs `work` for a page, when there is time for it. It may wait for a disk.
    pub async fn work_for_page<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TooManyPages> {
        let turn = self.browse.workers.clone().acquire_owned();
        let turn = tokio::time::timeout(TURN_TIMEOUT, turn).await.map_err(|_| TooManyPages)?;
        let work = spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        match work.await {
            Ok(done) => Ok(done),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
