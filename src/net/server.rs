//! Accepts connections, and drains them when the daemon stops.

use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::connection_limit::ConnectionLimit;
use super::{Listener, connection};
use crate::http::{App, ResponseBudget};

/// The time for which transfers continue after the daemon gets the signal to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause after a failed `accept`, which mostly fails because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The result of serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// The number of connections that were closed because they took longer than [`DRAIN_TIMEOUT`].
    pub cut_off: usize,
}

/// Serves `app` on `listener` until `stop` is cancelled, then waits for open requests.
pub async fn serve(mut listener: Listener, app: App, stop: CancellationToken) -> Drained {
    let slots = ConnectionLimit::new();
    let budget = ResponseBudget::new(slots.response_files());
    let connections = TaskTracker::new();
    let mut failures = AcceptFailures::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                failures.record(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failures.end();
        // One connection waits here, so that idle connections are closed; others wait in the backlog.
        let slot = tokio::select! {
            slot = slots.take() => slot,
            () = stop.cancelled() => slots.beyond_limit(),
        };
        let (app, budget, stop) = (app.clone(), budget.connection(), stop.clone());
        connections.spawn(connection::serve(connection, app, budget, stop, slot));
    }
    // New clients get an error at once instead of waiting in the backlog.
    drop(listener);
    connections.close();
    let in_time = tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await;
    Drained { cut_off: if in_time.is_ok() { 0 } else { connections.len() } }
}

/// Logs only the first of several failures in a row, and the recovery.
#[derive(Debug, Default)]
struct AcceptFailures {
    count: u64,
}

impl AcceptFailures {
    fn record(&mut self, error: &io::Error) {
        if self.count == 0 {
            warn!(reason = %error, "cannot accept connections; retrying");
        }
        self.count += 1;
    }

    fn end(&mut self) {
        if self.count > 0 {
            info!("accepting connections again after {} failures", self.count);
            self.count = 0;
        }
    }
}
