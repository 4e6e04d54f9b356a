//! Accepting connections, and letting them finish when the daemon stops.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{Listener, connection};
use crate::http::App;

/// How long transfers may go on after the daemon was told to stop.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long to wait after `accept` failed, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Descriptors that are kept at least for the store, the log and the runtime.
const RESERVED_FILES: u64 = 256;

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut off because they took longer than [`GRACE`].
    pub cut_off: usize,
}

/// Serves `app` on `listener` until `stop` is cancelled; then lets what is under way finish.
pub async fn serve(listener: Listener, app: App, stop: CancellationToken) -> Drained {
    let slots = Slots::new(connection_limit());
    let connections = TaskTracker::new();
    let mut trouble = Trouble::default();
    loop {
        // More than can be served wait in the kernel's queue until somebody leaves.
        let accepted = async {
            let slot = slots.take().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            (slot, accepted) = accepted => match accepted {
                Ok((stream, peer)) => {
                    trouble.is_over();
                    let (app, stop) = (app.clone(), stop.clone());
                    connections.spawn(connection::serve(stream, peer, app, stop, slot));
                }
                Err(error) => {
                    trouble.is(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = stop.cancelled() => break,
        }
    }
    // New clients are told at once that nobody is here, instead of waiting to be accepted.
    drop(listener);
    connections.close();
    let in_time = tokio::time::timeout(GRACE, connections.wait()).await;
    Drained { cut_off: if in_time.is_ok() { 0 } else { connections.len() } }
}

/// One for each connection that may be open.
#[derive(Debug)]
struct Slots(Arc<Semaphore>);

impl Slots {
    fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))))
    }

    async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(&self.0).try_acquire_owned() {
            return Some(slot);
        }
        warn!("as many connections are open as can be served; more wait until one ends");
        // Nobody closes the semaphore.
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// How many connections may be open. Most idle with one descriptor, and a quarter is kept for the
/// files of those that do not.
fn connection_limit() -> usize {
    let files = raise_file_limit();
    let reserved = RESERVED_FILES.max(files / 4);
    usize::try_from(files.saturating_sub(reserved)).unwrap_or(usize::MAX).max(16)
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

/// Accepting that fails again and again is one piece of news, and that it works again another.
#[derive(Debug, Default)]
struct Trouble {
    failures: u64,
}

impl Trouble {
    fn is(&mut self, error: &io::Error) {
        if self.failures == 0 {
            warn!(reason = %error, "cannot accept connections; trying again");
        }
        self.failures += 1;
    }

    fn is_over(&mut self) {
        if self.failures > 0 {
            info!("connections are accepted again, after {} tries", self.failures);
            self.failures = 0;
        }
    }
}
