//! Room for connections: as many as there are descriptors for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Descriptors that are kept at least for the store, the log and the runtime.
const RESERVED_FILES: u64 = 256;

/// One slot for each connection that may be open.
#[derive(Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    crowd: Crowd,
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    /// Whether others would like to have it.
    pub crowd: Crowd,
}

/// Whether somebody waits for room.
#[derive(Debug, Clone, Default)]
pub struct Crowd(Arc<AtomicBool>);

impl Crowd {
    /// Whether somebody waits now.
    pub fn waits(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes whether somebody does.
    pub fn set(&self, waits: bool) {
        self.0.store(waits, Ordering::Relaxed);
    }
}

impl Slots {
    /// As many as this process has descriptors for. Most connections idle with one descriptor, and
    /// a quarter is kept for the files of those that do not.
    pub fn new() -> Self {
        let files = raise_file_limit();
        let reserved = RESERVED_FILES.max(files / 4);
        let limit = usize::try_from(files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(16);
        let free = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { free, crowd: Crowd::default() }
    }

    /// Waits for a free one.
    pub async fn take(&self) -> Slot {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                if !self.crowd.waits() {
                    warn!(
                        "as many connections are open as can be served; more wait until one ends"
                    );
                }
                self.crowd.set(true);
                let permit = Arc::clone(&self.free).acquire_owned().await;
                permit.expect("nobody closes the semaphore")
            }
        };
        // Several that are free mean that nobody waits who is not let in at once.
        if self.free.available_permits() > 0 {
            self.crowd.set(false);
        }
        Slot { _permit: permit, crowd: self.crowd.clone() }
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
