//! Runs operations that may wait for the disk, on the blocking pool.

use std::io;
use std::sync::Arc;

use super::open_root::OpenRoot;
use super::root::Root;
use crate::store::StoreError;

/// Runs `work` on the blocking pool. `doing` and `key` describe it in an error.
pub(super) async fn run<T: Send + 'static>(
    doing: &'static str,
    key: String,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|done| done).map_err(|error| StoreError::new(doing, &key, error))
}

/// Runs `work` in the directory that the configured path leads to.
pub(super) async fn run_in<T: Send + 'static>(
    root: &Arc<Root>,
    doing: &'static str,
    key: String,
    work: impl FnOnce(&OpenRoot) -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let root = Arc::clone(root);
    run(doing, key, move || work(&*root.check_path().map_err(io::Error::other)?)).await
}

/// Runs a change in the directory that the configured path leads to, and fails if the path leads to
/// another one afterwards.
pub(super) async fn change_in<T: Send + 'static>(
    root: &Arc<Root>,
    doing: &'static str,
    key: String,
    work: impl FnOnce(&OpenRoot) -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let root = Arc::clone(root);
    let work = move || {
        let open = root.check_path_and_wait().map_err(io::Error::other)?;
        let done = work(&open)?;
        root.still_leads_to(&open).map_err(io::Error::other)?;
        Ok(done)
    };
    run(doing, key, work).await
}
