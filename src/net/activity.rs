//! What a connection is doing, and for how long it may.
//!
//! hyper's own header timeout runs on an idle connection too, where Nix's clients wait for up to
//! 118 s between two requests, and it costs a timer a request. So each connection keeps a few
//! numbers up to date, which costs nearly nothing, and one timer looks at them when it might
//! matter.
//!
//! HTTP/2 has no heads that follow each other: between requests, bytes may say that what was sent
//! has been read, or nothing. So there, once the first request has come, only answers count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::slots::Crowd;

/// The time for the whole head of a request, from its first byte (or the connection's beginning).
pub const HEAD: Duration = Duration::from_secs(30);

/// The same while others wait for the connection's place.
pub const HEAD_IN_A_CROWD: Duration = Duration::from_secs(5);

/// The time without a byte in either direction while no request is being worked on: between two
/// requests, or while a client does not take its answer. libcurl reuses a connection that was idle
/// for up to 118 s, and a close that races an upload ends a copy (PROTOCOL: Nix before 2.28.4).
pub const IDLE: Duration = Duration::from_secs(180);

/// What a connection is doing.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    crowd: Crowd,
    /// Requests that the service is working on.
    working: AtomicU32,
    /// When the head of a request began to arrive, or [`NEVER`].
    head_since: AtomicU64,
    last_read: AtomicU64,
    last_write: AtomicU64,
    /// Whether what was to be written last has to wait until the client reads.
    held_up: AtomicBool,
    /// Whether several requests may be under way at a time, as in HTTP/2.
    many: AtomicBool,
    /// Answers of which something is still to be sent, where there can be many.
    sending: AtomicU32,
    /// Whether the next answer shall be the last.
    ends: AtomicBool,
}

const NEVER: u64 = u64::MAX;

// The numbers are written by the one task of the connection and read by its timer in the same task.
// In HTTP/2 each request has a task of its own: who finds there that nothing is worked on any more
// must also find when that was.
const ORDER: Ordering = Ordering::Relaxed;

impl Activity {
    /// A connection that opens now, for whose place a crowd may wait.
    pub fn new(crowd: Crowd) -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            crowd,
            working: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            held_up: AtomicBool::new(false),
            many: AtomicBool::new(false),
            sending: AtomicU32::new(0),
            ends: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// Bytes arrived.
    pub fn read(&self) {
        let now = self.now();
        self.last_read.store(now, ORDER);
        if self.working.load(ORDER) == 0
            && self.head_since.load(ORDER) == NEVER
            && !self.many.load(ORDER)
        {
            self.head_since.store(now, ORDER);
        }
    }

    /// Bytes left.
    pub fn wrote(&self) {
        self.last_write.store(self.now(), ORDER);
        self.held_up.store(false, ORDER);
    }

    /// Bytes have to wait until the client reads.
    pub fn is_held_up(&self) {
        self.held_up.store(true, ORDER);
    }

    /// Several requests may be under way at a time from now on.
    #[cfg(feature = "tls")]
    pub fn carries_many(&self) {
        self.many.store(true, ORDER);
    }

    /// An answer is to be sent until the guard is dropped.
    #[cfg(feature = "tls")]
    pub fn send(self: &Arc<Self>) -> Sending {
        self.sending.fetch_add(1, ORDER);
        Sending(Arc::clone(self))
    }

    /// The next answer shall be the last.
    pub fn ends(&self) {
        self.ends.store(true, ORDER);
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
        if self.working.load(Ordering::Acquire) > 0 {
            return None;
        }
        let last_write = self.last_write.load(ORDER);
        let after = match self.head_since.load(ORDER) {
            NEVER if self.many.load(ORDER) => Duration::from_millis(last_write) + IDLE,
            NEVER => Duration::from_millis(last_write.max(self.last_read.load(ORDER))) + IDLE,
            // A pipelined request may wait for as long as the answer before it takes.
            since => Duration::from_millis(since.max(last_write)) + self.time_for_a_head(),
        };
        Some(self.opened + after)
    }

    fn time_for_a_head(&self) -> Duration {
        if self.crowd.waits() { HEAD_IN_A_CROWD } else { HEAD }
    }

    /// Returns when the connection has taken too long.
    pub async fn expired(&self) {
        let mut check = self.opened + HEAD_IN_A_CROWD;
        loop {
            tokio::time::sleep_until(check).await;
            let now = Instant::now();
            check = match self.deadline() {
                Some(deadline) if deadline <= now => return,
                // A crowd may come while a head does.
                Some(deadline) if self.head_since.load(ORDER) != NEVER => {
                    deadline.min(now + HEAD_IN_A_CROWD)
                }
                Some(deadline) => deadline,
                None => now + HEAD,
            };
        }
    }

    /// Returns when nothing has happened for `quiet`, and nothing is under way.
    pub async fn settled(&self, quiet: Duration) {
        loop {
            let busy = self.working.load(Ordering::Acquire) > 0
                || self.sending.load(ORDER) > 0
                || self.held_up.load(ORDER);
            let last = self.last_read.load(ORDER).max(self.last_write.load(ORDER));
            let now = Instant::now();
            let next = match self.opened + Duration::from_millis(last) + quiet {
                _ if busy => now + quiet,
                at if at <= now => return,
                at => at,
            };
            tokio::time::sleep_until(next).await;
        }
    }
}

/// A request that the service works on.
#[derive(Debug)]
pub struct Working(Arc<Activity>);

impl Working {
    /// Whether the connection shall end with its answer.
    pub fn is_the_last(&self) -> bool {
        self.0.ends.load(ORDER)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // The answer is about to be written.
        self.0.wrote();
        self.0.working.fetch_sub(1, Ordering::Release);
    }
}

/// An answer of which something is still to be sent.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub struct Sending(Arc<Activity>);

#[cfg(feature = "tls")]
impl Drop for Sending {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, ORDER);
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
        let activity = Activity::new(Crowd::default());
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
        let activity = Activity::new(Crowd::default());
        activity.read();
        drop(activity.work());
        assert_eq!(expires_after(&activity).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_worked_on_never_expires() {
        let activity = Activity::new(Crowd::default());
        let working = activity.work();
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, activity.expired()).await.is_err());
        drop(working);
        assert!(tokio::time::timeout(hour, activity.expired()).await.is_ok());
    }

    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn where_many_requests_can_be_under_way_bytes_begin_none() {
        let activity = Activity::new(Crowd::default());
        activity.carries_many();
        drop(activity.work());
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Not even those of who sends some again and again.
        activity.read();
        assert_eq!(expires_after(&activity).await, IDLE - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_less_time_while_others_wait() {
        let crowd = Crowd::default();
        let (slow, idle) = (Activity::new(crowd.clone()), Activity::new(crowd.clone()));
        drop(idle.work());
        tokio::time::sleep(Duration::from_secs(1)).await;
        crowd.set(true);
        let (slow, idle) = tokio::join!(expires_after(&slow), expires_after(&idle));
        assert_eq!(slow, HEAD_IN_A_CROWD - Duration::from_secs(1));
        assert_eq!(idle, IDLE - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_has_settled_when_nothing_happens_and_nothing_is_under_way() {
        let activity = Activity::new(Crowd::default());
        let quiet = Duration::from_secs(2);
        let hour = Duration::from_secs(3600);
        let settles =
            async |within| tokio::time::timeout(within, activity.settled(quiet)).await.is_ok();
        assert!(settles(quiet).await);
        let working = activity.work();
        assert!(!settles(hour).await);
        drop(working);
        assert!(!settles(Duration::from_secs(1)).await);
        assert!(settles(hour).await);
        activity.is_held_up();
        assert!(!settles(hour).await);
        activity.wrote();
        assert!(settles(hour).await);
        activity.read();
        assert!(!settles(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_has_its_own_half_minute() {
        let activity = Activity::new(Crowd::default());
        drop(activity.work());
        tokio::time::sleep(Duration::from_secs(100)).await;
        activity.read();
        assert_eq!(activity.deadline(), Some(Instant::now() + HEAD));
    }
}
