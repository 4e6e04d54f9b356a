//! The activity of a connection, and its timeouts.
//!
//! The header timeout of hyper also runs on an idle connection, where Nix's clients wait for up to
//! 118 s between two requests, and it costs a timer per request. So each connection updates a few
//! numbers, which costs next to nothing, and one timer checks them when it matters.
//!
//! HTTP/2 has no sequence of heads: between requests, bytes may acknowledge a response, or mean
//! nothing. So after the first request only responses count there. Bytes may also leave although
//! the client accepts nothing of a response, because control frames need no window: so only the
//! sent content counts ([`Waiting`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection_limit::Contention;

/// The time for the whole head of a request, from its first byte (or the connection's beginning).
pub const HEAD: Duration = Duration::from_secs(30);

/// The same while others wait for the connection's place.
pub const HEAD_IN_A_CROWD: Duration = Duration::from_secs(5);

/// The time without a byte in either direction while no request is being worked on: between two
/// requests, or while an answer waits for an upstream. libcurl reuses a connection that was idle
/// for up to 118 s, and a close that races an upload ends a copy (PROTOCOL: Nix before 2.28.4).
pub const IDLE: Duration = Duration::from_secs(180);

/// The time for which an answer may wait without the client taking any of it. An answer that waits
/// holds memory and perhaps a file.
pub const UNREAD: Duration = Duration::from_secs(60);

/// What a connection is doing.
#[derive(Debug)]
pub struct ConnectionTimeouts {
    opened: Instant,
    crowd: Contention,
    /// Requests that the service is working on.
    working: AtomicU32,
    /// When the head of a request began to arrive, or [`NEVER`].
    head_since: AtomicU64,
    last_read: AtomicU64,
    last_write: AtomicU64,
    /// Since when bytes wait until the client's system reads some, or [`NEVER`].
    held_up_since: AtomicU64,
    /// Whether the next write is tried although the socket has not been found writable, and the
    /// value of `held_up_since` for which that was done.
    retry_write: AtomicBool,
    retried_for: AtomicU64,
    /// Whether several requests may be under way at a time, as in HTTP/2.
    many: AtomicBool,
    /// Answers of which something is still to be sent.
    sending: AtomicU32,
    /// Contents of answers that wait for the client's window, where it has one.
    waiting: AtomicU32,
    /// When the first of those began to wait, or when content left for the last time.
    last_taken: AtomicU64,
    /// Whether a request was answered before all of its body had been read.
    unread: AtomicBool,
    /// Whether the next answer shall be the last.
    ends: AtomicBool,
    /// Whether the connection was asked to close if it is idle, and what wakes it for that.
    asked_to_close: AtomicBool,
    wake_to_close: Notify,
}

const NEVER: u64 = u64::MAX;

// The numbers are written by the one task of the connection and read by its timer in the same task.
// In HTTP/2 each request has a task of its own: who finds there that nothing is worked on any more
// must also find when that was.
const ORDER: Ordering = Ordering::Relaxed;

impl ConnectionTimeouts {
    /// A connection that opens now, for whose place a crowd may wait.
    pub fn new(crowd: Contention) -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            crowd,
            working: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            held_up_since: AtomicU64::new(NEVER),
            retry_write: AtomicBool::new(false),
            retried_for: AtomicU64::new(NEVER),
            many: AtomicBool::new(false),
            sending: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            last_taken: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            asked_to_close: AtomicBool::new(false),
            wake_to_close: Notify::new(),
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
        self.held_up_since.store(NEVER, ORDER);
    }

    /// Bytes have to wait until the client reads.
    pub fn is_held_up(&self) {
        if self.held_up_since.load(ORDER) == NEVER {
            self.held_up_since.store(self.now(), ORDER);
        }
    }

    /// Whether the next write shall be tried although the socket has not been found writable. Says
    /// so once.
    pub fn retries_write(&self) -> bool {
        self.retry_write.load(ORDER) && self.retry_write.swap(false, ORDER)
    }

    /// Several requests may be under way at a time from now on.
    #[cfg(feature = "tls")]
    pub fn carries_many(&self) {
        self.many.store(true, ORDER);
    }

    /// An answer is to be sent until the guard is dropped.
    pub fn send(self: &Arc<Self>) -> Sending {
        self.sending.fetch_add(1, ORDER);
        Sending(Arc::clone(self))
    }

    /// Content waits for the client's window until the guard is dropped.
    #[cfg(feature = "tls")]
    pub fn wait(self: &Arc<Self>) -> Waiting {
        if self.waiting.fetch_add(1, ORDER) == 0 {
            self.last_taken.store(self.now(), ORDER);
        }
        Waiting(Arc::clone(self))
    }

    /// The body of a request was given up before its end.
    pub fn leaves_unread(&self) {
        self.unread.store(true, ORDER);
    }

    /// Whether the client may still send the body of a request that was answered.
    pub fn has_unread(&self) -> bool {
        self.unread.load(ORDER)
    }

    /// The next answer shall be the last.
    pub fn ends(&self) {
        self.ends.store(true, ORDER);
    }

    /// A request has arrived, and the service works on it until the guard is dropped.
    pub fn work(self: &Arc<Self>) -> Working {
        self.head_since.store(NEVER, ORDER);
        // Had there been anything to read before it, it would not have been read itself.
        self.unread.store(false, ORDER);
        self.working.fetch_add(1, ORDER);
        Working(Arc::clone(self))
    }

    fn at(&self, millis: u64) -> Instant {
        self.opened + Duration::from_millis(millis)
    }

    /// When the client will have left an answer unread for too long, if one waits.
    fn unread_deadline(&self) -> Option<Instant> {
        let held_up = self.held_up_since.load(ORDER);
        let waiting = match self.waiting.load(ORDER) {
            0 => NEVER,
            _ => self.last_taken.load(ORDER),
        };
        let since = held_up.min(waiting);
        (since != NEVER).then(|| self.at(since) + UNREAD)
    }

    /// When the connection will have taken too long if nothing happens; none while the service
    /// works, which has timeouts of its own, and no answer waits for the client.
    pub fn deadline(&self) -> Option<Instant> {
        let unread = self.unread_deadline();
        if self.working.load(Ordering::Acquire) > 0 {
            return unread;
        }
        let last_write = self.last_write.load(ORDER);
        let after = match self.head_since.load(ORDER) {
            NEVER if self.many.load(ORDER) => self.at(last_write) + IDLE,
            NEVER => self.at(last_write.max(self.last_read.load(ORDER))) + IDLE,
            // A pipelined request may wait for as long as the answer before it takes.
            since => self.at(since.max(last_write)) + self.time_for_a_head(),
        };
        Some(unread.map_or(after, |unread| unread.min(after)))
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
                // An answer may begin to wait at any time.
                Some(deadline) => deadline.min(now + UNREAD),
                None => now + HEAD,
            };
        }
    }

    /// Whether a connection that has taken too long gets one more try to write. A socket is found
    /// writable when a third of its buffer is free, which takes a slow client long; so before a
    /// client is said to take nothing, it is tried whether the socket takes anything.
    pub fn tries_once_more(&self) -> bool {
        let since = self.held_up_since.load(ORDER);
        let tries = self.retried_for.swap(since, ORDER) != since;
        self.retry_write.store(tries, ORDER);
        tries
    }

    /// Since when the connection is between two requests, with nothing to send or to read.
    pub fn idle_since(&self) -> Option<Instant> {
        let busy = self.working.load(Ordering::Acquire) > 0
            || self.sending.load(ORDER) > 0
            || self.head_since.load(ORDER) != NEVER
            || self.held_up_since.load(ORDER) != NEVER;
        // What a client of HTTP/2 sends between requests is no use of the connection.
        let last_read = if self.many.load(ORDER) { 0 } else { self.last_read.load(ORDER) };
        (!busy).then(|| self.at(last_read.max(self.last_write.load(ORDER))))
    }

    /// Asks the connection to close if it is idle.
    pub fn ask_to_close(&self) {
        self.asked_to_close.store(true, ORDER);
        self.wake_to_close.notify_one();
    }

    /// Whether it was asked to close, and may still do so.
    pub fn is_asked_to_close(&self) -> bool {
        self.asked_to_close.load(ORDER)
    }

    /// Returns when the connection is asked to close, and is idle.
    pub async fn closes_idle(&self) {
        loop {
            self.wake_to_close.notified().await;
            if self.idle_since().is_some() {
                return;
            }
            // A request has come in between, and it may be asked again.
            self.asked_to_close.store(false, ORDER);
        }
    }

    /// Returns after `quiet`, in which requests may still come, and not before the last of them has
    /// been answered.
    pub async fn late_requests(&self, quiet: Duration) {
        tokio::time::sleep(quiet).await;
        self.settled(quiet).await;
    }

    /// Returns when nothing has happened for `quiet`, and nothing is under way.
    async fn settled(&self, quiet: Duration) {
        loop {
            let busy = self.working.load(Ordering::Acquire) > 0
                || self.sending.load(ORDER) > 0
                || self.held_up_since.load(ORDER) != NEVER;
            let last = self.last_read.load(ORDER).max(self.last_write.load(ORDER));
            let now = Instant::now();
            let next = match self.at(last) + quiet {
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
pub struct Working(Arc<ConnectionTimeouts>);

impl Working {
    /// Whether the connection shall end with its answer.
    pub fn is_the_last(&self) -> bool {
        self.0.ends.load(ORDER)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // The answer is about to be written.
        self.0.last_write.store(self.0.now(), ORDER);
        self.0.working.fetch_sub(1, Ordering::Release);
    }
}

/// An answer of which something is still to be sent.
#[derive(Debug)]
pub struct Sending(Arc<ConnectionTimeouts>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, ORDER);
    }
}

/// Content that waits for the client's window.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub struct Waiting(Arc<ConnectionTimeouts>);

#[cfg(feature = "tls")]
impl Waiting {
    /// Some of it has left.
    pub fn taken(&self) {
        self.0.last_taken.store(self.0.now(), ORDER);
    }
}

#[cfg(feature = "tls")]
impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, ORDER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn expires_after(activity: &ConnectionTimeouts) -> Duration {
        let begun = Instant::now();
        activity.expired().await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_half_a_minute_however_it_trickles() {
        let activity = ConnectionTimeouts::new(Contention::default());
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
        let activity = ConnectionTimeouts::new(Contention::default());
        activity.read();
        drop(activity.work());
        assert_eq!(expires_after(&activity).await, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_worked_on_never_expires() {
        let activity = ConnectionTimeouts::new(Contention::default());
        let working = activity.work();
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, activity.expired()).await.is_err());
        drop(working);
        assert!(tokio::time::timeout(hour, activity.expired()).await.is_ok());
    }

    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn where_many_requests_can_be_under_way_bytes_begin_none() {
        let activity = ConnectionTimeouts::new(Contention::default());
        activity.carries_many();
        drop(activity.work());
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Not even those of who sends some again and again.
        activity.read();
        assert_eq!(expires_after(&activity).await, IDLE - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_less_time_while_others_wait() {
        let crowd = Contention::default();
        let (slow, idle) =
            (ConnectionTimeouts::new(crowd.clone()), ConnectionTimeouts::new(crowd.clone()));
        drop(idle.work());
        tokio::time::sleep(Duration::from_secs(1)).await;
        crowd.set(true);
        let (slow, idle) = tokio::join!(expires_after(&slow), expires_after(&idle));
        assert_eq!(slow, HEAD_IN_A_CROWD - Duration::from_secs(1));
        assert_eq!(idle, IDLE - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_has_settled_when_nothing_happens_and_nothing_is_under_way() {
        let activity = ConnectionTimeouts::new(Contention::default());
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
    async fn bytes_that_the_client_does_not_take_expire_whatever_else_happens() {
        let activity = ConnectionTimeouts::new(Contention::default());
        let _working = activity.work();
        tokio::time::sleep(Duration::from_secs(100)).await;
        activity.is_held_up();
        tokio::time::sleep(Duration::from_secs(10)).await;
        activity.is_held_up();
        assert_eq!(expires_after(&activity).await, UNREAD - Duration::from_secs(10));
        // One more try, and no second one for the same bytes.
        assert!(activity.tries_once_more() && activity.retries_write());
        assert!(!activity.retries_write() && !activity.tries_once_more());
        activity.wrote();
        activity.is_held_up();
        assert_eq!(expires_after(&activity).await, UNREAD);
        assert!(activity.tries_once_more());
    }

    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_window_expires_unless_some_of_it_is_taken() {
        let activity = ConnectionTimeouts::new(Contention::default());
        activity.carries_many();
        drop(activity.work());
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (first, second) = (activity.wait(), activity.wait());
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            assert!(activity.deadline().is_some_and(|deadline| deadline > Instant::now()));
            first.taken();
            activity.wrote();
        }
        // Other bytes do not count.
        tokio::time::sleep(Duration::from_secs(50)).await;
        activity.wrote();
        activity.read();
        assert_eq!(activity.deadline(), Some(Instant::now() + Duration::from_secs(10)));
        drop((first, second));
        assert_eq!(activity.deadline(), Some(Instant::now() + IDLE));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_between_requests_is_idle() {
        let activity = ConnectionTimeouts::new(Contention::default());
        // Its first request has not come yet.
        assert_eq!(activity.idle_since(), None);
        let working = activity.work();
        assert_eq!(activity.idle_since(), None);
        let sending = activity.send();
        drop(working);
        assert_eq!(activity.idle_since(), None);
        drop(sending);
        let since = Instant::now();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(activity.idle_since(), Some(since));
        activity.read();
        assert_eq!(activity.idle_since(), None);
        // Who is asked to close and is not idle any more can be asked again.
        activity.ask_to_close();
        assert!(activity.is_asked_to_close());
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, activity.closes_idle()).await.is_err());
        assert!(!activity.is_asked_to_close());
        drop(activity.work());
        activity.ask_to_close();
        assert!(tokio::time::timeout(second, activity.closes_idle()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_has_its_own_half_minute() {
        let activity = ConnectionTimeouts::new(Contention::default());
        drop(activity.work());
        tokio::time::sleep(Duration::from_secs(100)).await;
        activity.read();
        assert_eq!(activity.deadline(), Some(Instant::now() + HEAD));
    }
}
