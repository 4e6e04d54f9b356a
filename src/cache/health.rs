//! The condition of the store, cached for frequent health checks.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::Cache;
use crate::store::{Availability, Store, StoreError};

/// The time for which the result of a check is cached.
const FRESH: Duration = Duration::from_secs(2);

/// A store that does not respond within this time is unusable.
const PATIENCE: Duration = Duration::from_secs(5);

/// The health of a store.
#[derive(Debug, Clone)]
pub struct Health {
    /// What can be done with it.
    pub condition: Arc<Availability>,
    /// Free space in bytes, where it is known.
    pub free_space: Option<u64>,
}

/// The cached health of the store.
#[derive(Default)]
pub(super) struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    seen: Option<(Instant, Health)>,
    /// A look that has not come to its end: a disk that hangs must not be given one thread more
    /// every few seconds.
    looking: Option<JoinHandle<Health>>,
}

impl Cache {
    /// How the store is now, or was a moment ago. Nothing is written for it.
    pub async fn health(&self) -> Health {
        let mut state = self.health.0.lock().await;
        if let Some((at, health)) = &state.seen
            && at.elapsed() < FRESH
        {
            return health.clone();
        }
        let store = &self.store;
        let looking = state.looking.get_or_insert_with(|| tokio::spawn(look(Arc::clone(store))));
        let health = match tokio::time::timeout(PATIENCE, looking).await {
            Ok(looked) => {
                state.looking = None;
                looked.unwrap_or_else(|_| unusable(io::Error::other("the check panicked")))
            }
            Err(_) => unusable(io::ErrorKind::TimedOut.into()),
        };
        state.seen = Some((Instant::now(), health.clone()));
        health
    }
}

async fn look(store: Arc<Store>) -> Health {
    let condition = Arc::new(store.check().await);
    let free_space = tokio::task::spawn_blocking(move || store.free_space());
    Health { condition, free_space: free_space.await.ok().flatten() }
}

fn unusable(source: io::Error) -> Health {
    let error = StoreError::Io { doing: "checking", key: "the store".to_owned(), source };
    Health { condition: Arc::new(Availability::Unusable(error)), free_space: None }
}
