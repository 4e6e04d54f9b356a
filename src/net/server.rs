//! Accepting connections, and letting them finish when the daemon stops.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Listener, connection};
use crate::http::App;

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
pub async fn serve(listener: Listener, app: App, stop: CancellationToken) -> Drained {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection::serve(stream, peer, app.clone(), stop.clone()));
                }
                Err(error) => {
                    warn!(reason = %error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    // New clients are told at once that nobody is here, instead of waiting to be accepted.
    drop(listener);
    let all_done = async { while connections.join_next().await.is_some() {} };
    let in_time = tokio::time::timeout(GRACE, all_done).await;
    Drained { cut_off: if in_time.is_ok() { 0 } else { connections.len() } }
}
