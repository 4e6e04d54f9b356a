//! Accepts connections, and drains them when the daemon stops.

use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::connection_limit::ConnectionLimit;
use super::{Listener, connection};
use crate::http::{AnswerBudget, App};

/// How long transfers may go on after the daemon was told to stop.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long to wait after `accept` failed, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut off because they took longer than [`GRACE`].
    pub cut_off: usize,
}

/// Serves `app` on `listener` until `stop` is cancelled; then lets what is under way finish.
pub async fn serve(mut listener: Listener, app: App, stop: CancellationToken) -> Drained {
    let slots = ConnectionLimit::new();
    let budget = AnswerBudget::new(slots.answer_files());
    let connections = TaskTracker::new();
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                trouble.is(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        trouble.is_over();
        // One waits here, which makes idle connections close, and more in the kernel's queue.
        let slot = tokio::select! {
            slot = slots.take() => slot,
            () = stop.cancelled() => slots.last(),
        };
        let (app, budget, stop) = (app.clone(), budget.connection(), stop.clone());
        connections.spawn(connection::serve(connection, app, budget, stop, slot));
    }
    // New clients are told at once that nobody is here, instead of waiting to be accepted.
    drop(listener);
    connections.close();
    let in_time = tokio::time::timeout(GRACE, connections.wait()).await;
    Drained { cut_off: if in_time.is_ok() { 0 } else { connections.len() } }
}

/// Accepting that fails again and again is one piece of news, and that it works again another.
#[derive(Debug, Default)]
struct Trouble {
    failures: u64,
}

impl Trouble {
    fn is(&mut self, error: &io::Error) {
        if self.failures == 0 {
            warn!(reason = %error, "cannot accept connections; retrying");
        }
        self.failures += 1;
    }

    fn is_over(&mut self) {
        if self.failures > 0 {
            info!("accepting connections again after {} failures", self.failures);
            self.failures = 0;
        }
    }
}
