//! What a connection is doing, and for how long it may.
//!
//! hyper's own header timeout runs on an idle connection too, where Nix's clients wait for up to
//! 118 s between two requests, and it costs a timer a request. So each connection keeps a few
//! numbers up to date, which costs nearly nothing, and one timer looks at them when it might
//! matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The time for the whole head of a request, from its first byte (or the connection's beginning).
pub const HEAD: Duration = Duration::from_secs(30);

/// The time without a byte in either direction while no request is being worked on: between two
/// requests, or while a client does not take its answer. libcurl reuses a connection that was idle
/// for up to 118 s, and a close that races an upload ends a copy (PROTOCOL: Nix before 2.28.4).
pub const IDLE: Duration = Duration::from_secs(180);

/// What a connection is doing.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    /// Requests that the service is working on.
    working: AtomicU32,
    /// When the head of a request began to arrive, or [`NEVER`].
    head_since: AtomicU64,
    last_read: AtomicU64,
    last_write: AtomicU64,
}

const NEVER: u64 = u64::MAX;

// The numbers are written by the one task of the connection and read by its timer in the same task.
const ORDER: Ordering = Ordering::Relaxed;

impl Activity {
    /// A connection that opens now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            working: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// Bytes arrived.
    pub fn read(&self) {
        let now = self.now();
        self.last_read.store(now, ORDER);
        if self.working.load(ORDER) == 0 && self.head_since.load(ORDER) == NEVER {
            self.head_since.store(now, ORDER);
        }
    }

    /// Bytes left.
    pub fn wrote(&self) {
        self.last_write.store(self.now(), ORDER);
    }

    /// A request has arrived, and the service works on it until the guard is dropped.
    pub fn work(self: &Arc<Self>) -> Working {
        self.head_since.store(NEVER, ORDER);
        self.working.fetch_add(1, ORDER);
        Working(Arc::clone(self))
    }

    /// When the connection will have taken too long if nothing happens; none while the service
    /// works, which has timeouts of its own.
    pub fn deadline(&self) -> Option<Instant> {
        if self.working.load(ORDER) > 0 {
            return None;
        }
        let last_write = self.last_write.load(ORDER);
        let after = match self.head_since.load(ORDER) {
            NEVER => Duration::from_millis(last_write.max(self.last_read.load(ORDER))) + IDLE,
            // A pipelined request may wait for as long as the answer before it takes.
            since => Duration::from_millis(since.max(last_write)) + HEAD,
        };
        Some(self.opened + after)
    }

    /// Returns when the connection has taken too long.
    pub async fn expired(&self) {
        let mut check = self.opened + HEAD;
        loop {
            tokio::time::sleep_until(check).await;
            let now = Instant::now();
            check = match self.deadline() {
                Some(deadline) if deadline <= now => return,
                Some(deadline) => deadline,
                None => now + HEAD,
            };
        }
    }
}

/// A request that the service works on.
#[derive(Debug)]
pub struct Working(Arc<Activity>);

impl Drop for Working {
    fn drop(&mut self) {
        // The answer is about to be written.
        self.0.wrote();
        self.0.working.fetch_sub(1, ORDER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn expires_after(activity: &Activity) -> Duration {
        let begun = Instant::now();
        activity.expired().await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_half_a_minute_however_it_trickles() {
        let activity = Activity::new();
        let trickle = async {
            for _ in 0..1000 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                activity.read();
            }
        };
        tokio::select! {
            taken = expires_after(&activity) => assert_eq!(taken, HEAD),
            () = trickle => panic!("it never expired"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_kept_for_three_minutes() {
        let activity = Activity::new();
        activity.read();
        drop(activity.work());
        assert_eq!(expires_after(&activity).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_worked_on_never_expires() {
        let activity = Activity::new();
        let working = activity.work();
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, activity.expired()).await.is_err());
        drop(working);
        assert!(tokio::time::timeout(hour, activity.expired()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_has_its_own_half_minute() {
        let activity = Activity::new();
        drop(activity.work());
        tokio::time::sleep(Duration::from_secs(100)).await;
        activity.read();
        assert_eq!(activity.deadline(), Some(Instant::now() + HEAD));
    }
}
