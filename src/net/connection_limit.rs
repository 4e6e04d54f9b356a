//! The connection limit, which depends on the number of file descriptors.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::connection_timeouts::ConnectionTimeouts;

/// Descriptors that are kept at least for the store, the log and the runtime.
const RESERVED_FILES: u64 = 256;

/// A connection that has been idle for a shorter time is not closed for a newcomer: where all are in
/// use, closing them would only make their clients newcomers.
const IDLE_AT_LEAST: Duration = Duration::from_secs(1);

/// How often another idle connection is looked for while a newcomer waits.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// One slot for each connection that may be open.
#[derive(Debug)]
pub struct ConnectionLimit {
    free: Arc<Semaphore>,
    crowd: Contention,
    open: Arc<OpenConnections>,
    answer_files: usize,
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
    /// Whether others would like to have it.
    pub crowd: Contention,
    open: Arc<OpenConnections>,
    number: u64,
}

/// Whether somebody waits for room.
#[derive(Debug, Clone, Default)]
pub struct Contention(Arc<AtomicBool>);

impl Contention {
    /// Whether somebody waits now.
    pub fn waits(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes whether somebody does.
    pub fn set(&self, waits: bool) {
        self.0.store(waits, Ordering::Relaxed);
    }
}

/// What the open connections are doing, by their numbers.
#[derive(Debug, Default)]
struct OpenConnections {
    activities: Mutex<HashMap<u64, Arc<ConnectionTimeouts>>>,
    next: AtomicU64,
}

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<ConnectionTimeouts>>> {
        // A map is whole after every step.
        self.activities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the connection that has been idle for the longest time to close, of those that were not
    /// asked yet.
    fn close_longest_idle(&self) {
        let now = Instant::now();
        let activities = self.lock();
        let longest = activities
            .values()
            .filter(|activity| !activity.is_asked_to_close())
            .filter_map(|activity| Some((activity.idle_since()?, activity)))
            .filter(|(since, _)| now - *since >= IDLE_AT_LEAST)
            .min_by_key(|(since, _)| *since);
        if let Some((since, activity)) = longest {
            activity.ask_to_close();
            let seconds = (now - since).as_secs();
            debug!(idle_seconds = seconds, "closing an idle connection to make room");
        }
    }
}

impl ConnectionLimit {
    /// As many as this process has descriptors for. Most connections idle with one descriptor, and
    /// a quarter is kept for the files of those that do not.
    pub fn new() -> Self {
        let files = raise_file_limit();
        let reserved = RESERVED_FILES.max(files / 4);
        let limit = usize::try_from(files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(16);
        let free = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        let answer_files = usize::try_from(reserved / 2).unwrap_or(usize::MAX);
        Self { free, crowd: Contention::default(), open: Arc::default(), answer_files }
    }

    /// The number of files that answers may keep open: half of the descriptors that are not for
    /// connections.
    pub fn answer_files(&self) -> usize {
        self.answer_files
    }

    /// Waits for a free one, for a connection that is there. Meanwhile those that are idle are
    /// closed, the longest idle first.
    pub async fn take(&self) -> Slot {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                if !self.crowd.waits() {
                    warn!("connection limit reached; new connections wait for a free slot");
                }
                self.crowd.set(true);
                self.make_room().await
            }
        };
        // Several that are free mean that nobody waits who is not let in at once.
        if self.free.available_permits() > 0 {
            self.crowd.set(false);
        }
        self.slot(Some(permit))
    }

    async fn make_room(&self) -> OwnedSemaphorePermit {
        loop {
            self.open.close_longest_idle();
            let permit = Arc::clone(&self.free).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(LOOK_AGAIN, permit).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }

    /// Room for a connection that was accepted when the daemon was told to stop, beyond the limit.
    pub fn last(&self) -> Slot {
        self.slot(None)
    }

    fn slot(&self, permit: Option<OwnedSemaphorePermit>) -> Slot {
        let (crowd, open) = (self.crowd.clone(), Arc::clone(&self.open));
        let number = open.next.fetch_add(1, Ordering::Relaxed);
        Slot { _permit: permit, crowd, open, number }
    }
}

impl Slot {
    /// Notes what the connection is doing, so that it can be closed when it is idle.
    pub fn register(&self, activity: &Arc<ConnectionTimeouts>) {
        self.open.lock().insert(self.number, Arc::clone(activity));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
    }
}

/// Takes as many file descriptors as the process may have, and returns how many that are.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        // No maximum: the kernel's own (`fs.nr_open`) is far above what is ever needed.
        Ok(()) => limit.maximum.unwrap_or(1 << 20),
        Err(_) => limit.current.unwrap_or(1024),
    }
}
