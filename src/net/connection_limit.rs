//! The connection limit, which depends on the number of file descriptors.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::connection_timeouts::ConnectionTimeouts;
use super::contention::Contention;

/// The minimum number of file descriptors that are kept for the store, the log and the runtime.
const RESERVED_FILES: u64 = 256;

/// A connection that has been idle for less than this is not closed to make room for a new one: its
/// client would only connect again.
const MIN_IDLE: Duration = Duration::from_secs(1);

/// The interval at which an idle connection is closed while a new connection waits.
const CLOSE_INTERVAL: Duration = Duration::from_millis(100);

/// The slots of all connections that may be open.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    free: Arc<Semaphore>,
    contention: Contention,
    open: Arc<OpenConnections>,
    response_files: usize,
}

/// The slot of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
    /// Whether other connections wait for a slot.
    pub contention: Contention,
    open: Arc<OpenConnections>,
    number: u64,
}

/// The open connections, by number.
#[derive(Debug, Default)]
struct OpenConnections {
    connections: Mutex<HashMap<u64, Arc<ConnectionTimeouts>>>,
    next: AtomicU64,
}

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<ConnectionTimeouts>>> {
        // A panic cannot leave the map half changed.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests the longest idle connection to close. Skips connections that already have such a
    /// request.
    fn close_longest_idle(&self) {
        let now = Instant::now();
        let connections = self.lock();
        let longest = connections
            .values()
            .filter(|timeouts| !timeouts.is_close_requested())
            .filter_map(|timeouts| Some((timeouts.idle_since()?, timeouts)))
            .filter(|(since, _)| now - *since >= MIN_IDLE)
            .min_by_key(|(since, _)| *since);
        if let Some((since, timeouts)) = longest {
            timeouts.request_close();
            let seconds = (now - since).as_secs();
            debug!(idle_seconds = seconds, "closing an idle connection to make room");
        }
    }
}

impl ConnectionLimit {
    /// Creates slots for three quarters of the file descriptors of this process. Each connection
    /// has one descriptor; the other quarter is for the files of responses and uploads.
    pub(super) fn new() -> Self {
        let files = raise_file_limit();
        let reserved = RESERVED_FILES.max(files / 4);
        let limit = usize::try_from(files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(16);
        let free = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        let response_files = usize::try_from(reserved / 2).unwrap_or(usize::MAX);
        Self { free, contention: Contention::default(), open: Arc::default(), response_files }
    }

    /// The number of files that responses may keep open: half of the descriptors that are not for
    /// connections.
    pub(super) fn response_files(&self) -> usize {
        self.response_files
    }

    /// Waits for a free slot for an accepted connection. Meanwhile idle connections are closed, the
    /// longest idle first.
    pub(super) async fn take(&self) -> Slot {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                if !self.contention.exists() {
                    warn!("connection limit reached; new connections wait for a free slot");
                }
                self.contention.set(true);
                self.make_room().await
            }
        };
        // Another free slot means that no connection waits.
        if self.free.available_permits() > 0 {
            self.contention.set(false);
        }
        self.slot(Some(permit))
    }

    async fn make_room(&self) -> OwnedSemaphorePermit {
        loop {
            self.open.close_longest_idle();
            let permit = Arc::clone(&self.free).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(CLOSE_INTERVAL, permit).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }

    /// Returns a slot beyond the limit, for a connection that was accepted when the daemon stopped.
    pub(super) fn beyond_limit(&self) -> Slot {
        self.slot(None)
    }

    fn slot(&self, permit: Option<OwnedSemaphorePermit>) -> Slot {
        let (contention, open) = (self.contention.clone(), Arc::clone(&self.open));
        let number = open.next.fetch_add(1, Ordering::Relaxed);
        Slot { _permit: permit, contention, open, number }
    }
}

impl Slot {
    /// Registers the connection, so that it can be closed when it is idle.
    pub(super) fn register(&self, timeouts: &Arc<ConnectionTimeouts>) {
        self.open.lock().insert(self.number, Arc::clone(timeouts));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
    }
}

/// Raises the limit of open files to the maximum, and returns it.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        // Without a maximum, the kernel's limit (`fs.nr_open`) applies, which is larger than this.
        Ok(()) => limit.maximum.unwrap_or(1 << 20),
        Err(_) => limit.current.unwrap_or(1024),
    }
}
