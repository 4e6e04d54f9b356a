//! The health of the store, cached for frequent health checks.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::availability::Availability;
use super::dispatch::Store;
use super::error::StoreError;

/// The time for which the result of a check is returned without a new check.
const HEALTH_CACHE_TIME: Duration = Duration::from_secs(2);

/// A store that does not respond within this time is unusable.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The health of a store.
#[derive(Debug, Clone)]
pub struct Health {
    /// The operations that the store supports now.
    pub condition: Arc<Availability>,
    /// Free space in bytes, if it is known.
    pub free_space: Option<u64>,
}

/// The health of a store, checked at most every 2 s.
pub struct HealthWatch {
    store: Arc<Store>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<(Instant, Health)>,
    /// The check in progress. Later calls wait for it, so that a disk that hangs blocks only one
    /// thread.
    running_check: Option<JoinHandle<Health>>,
}

impl HealthWatch {
    /// Creates a watch for a store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, state: Mutex::default() }
    }

    /// Returns the health of the store, which is at most 2 s old. Nothing is written to the store.
    pub async fn health(&self) -> Health {
        let mut state = self.state.lock().await;
        if let Some((at, health)) = &state.last
            && at.elapsed() < HEALTH_CACHE_TIME
        {
            return health.clone();
        }
        let store = &self.store;
        let running_check =
            state.running_check.get_or_insert_with(|| tokio::spawn(check(Arc::clone(store))));
        let health = match tokio::time::timeout(CHECK_TIMEOUT, running_check).await {
            Ok(checked) => {
                state.running_check = None;
                checked.unwrap_or_else(|_| unusable(io::Error::other("the check panicked")))
            }
            Err(_) => unusable(io::ErrorKind::TimedOut.into()),
        };
        state.last = Some((Instant::now(), health.clone()));
        health
    }
}

async fn check(store: Arc<Store>) -> Health {
    let condition = Arc::new(store.check().await);
    let free_space = tokio::task::spawn_blocking(move || store.free_space());
    Health { condition, free_space: free_space.await.ok().flatten() }
}

fn unusable(source: io::Error) -> Health {
    let error = StoreError::Io { doing: "checking", key: "the store".to_owned(), source };
    Health { condition: Arc::new(Availability::Unusable(error)), free_space: None }
}
