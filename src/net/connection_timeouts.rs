//! The timeouts of a connection.
//!
//! The header timeout of hyper also runs on an idle connection, where Nix's clients wait for up to
//! 118 s between two requests, and it costs a timer per request. So each connection stores the
//! times of its events in atomic numbers, and a single timer checks them.
//!
//! In HTTP/2, bytes between requests can be control frames. So after the first request, only
//! responses reset the idle timeout there. Sent bytes can be control frames, too, which need no
//! flow-control window. So only sent response content counts as progress of a response
//! ([`WindowWait`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::contention::Contention;

/// The time in which a client must send the head of a request, from the first byte, or from the start
/// of the connection.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The value of [`HEAD_TIMEOUT`] while new connections wait for a free slot.
pub(super) const CONTENDED_HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The time without a byte in either direction while the application handles no request, such as
/// between two requests. libcurl reuses a connection that was idle
/// for up to 118 s, and a close that races an upload ends a copy (PROTOCOL: Nix before 2.28.4).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// The time after the last byte for which a draining connection still accepts requests, so that a
/// client that sends requests one after the other gets responses to all of them.
pub(super) const DRAIN_QUIET_PERIOD: Duration = Duration::from_secs(1);

/// The time for which a client may read nothing of a response. A waiting response holds memory, and
/// perhaps an open file.
pub(super) const UNREAD_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// The state of a connection, as far as its timeouts depend on it. All times are in milliseconds since
/// the connection opened.
#[derive(Debug)]
pub(super) struct ConnectionTimeouts {
    opened: Instant,
    contention: Contention,
    /// The number of requests that the application handles.
    working: AtomicU32,
    /// The time of the first byte of an incomplete request head, or [`NEVER`].
    head_since: AtomicU64,
    last_read: AtomicU64,
    last_write: AtomicU64,
    /// The time since which the socket accepts no bytes, or [`NEVER`].
    blocked_since: AtomicU64,
    /// Whether the next write is tried even if the socket is not known to be writable.
    retry_write: AtomicBool,
    /// The value of `blocked_since` for which a write retry was last granted.
    retried_for: AtomicU64,
    /// Whether several requests can be in progress at a time, as in HTTP/2.
    multiplexed: AtomicBool,
    /// The number of responses that are not completely sent.
    sending: AtomicU32,
    /// The number of responses that wait for the client's flow-control window.
    waiting: AtomicU32,
    /// The time when the first of these responses began to wait, or when content was last sent.
    last_sent: AtomicU64,
    /// Whether a request body was dropped before its end.
    unread_body: AtomicBool,
    /// Whether the connection closes after the next response.
    closes_after_response: AtomicBool,
    /// Whether the connection was requested to close if it is idle.
    close_requested: AtomicBool,
    /// Wakes the connection when `close_requested` is set.
    wake_to_close: Notify,
}

const NEVER: u64 = u64::MAX;

// In HTTP/1, one task writes and reads all fields. In HTTP/2, each request has a task: a reader
// that sees `working` drop to 0 must also see the new `last_write`. So `working` alone is written
// with `Release` and read with `Acquire`.
const ORDER: Ordering = Ordering::Relaxed;

impl ConnectionTimeouts {
    /// Creates the state of a connection that opens now.
    pub(super) fn new(contention: Contention) -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            contention,
            working: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NEVER),
            retry_write: AtomicBool::new(false),
            retried_for: AtomicU64::new(NEVER),
            multiplexed: AtomicBool::new(false),
            sending: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            last_sent: AtomicU64::new(0),
            unread_body: AtomicBool::new(false),
            closes_after_response: AtomicBool::new(false),
            close_requested: AtomicBool::new(false),
            wake_to_close: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// Records that bytes were received.
    pub(super) fn record_read(&self) {
        let now = self.now();
        self.last_read.store(now, ORDER);
        if self.working.load(ORDER) == 0
            && self.head_since.load(ORDER) == NEVER
            && !self.multiplexed.load(ORDER)
        {
            self.head_since.store(now, ORDER);
        }
    }

    /// Records that bytes were sent.
    pub(super) fn record_write(&self) {
        self.last_write.store(self.now(), ORDER);
        self.blocked_since.store(NEVER, ORDER);
    }

    /// Records that the socket accepts no bytes until the client reads some.
    pub(super) fn record_blocked(&self) {
        if self.blocked_since.load(ORDER) == NEVER {
            self.blocked_since.store(self.now(), ORDER);
        }
    }

    /// Takes the granted write retry. If there was one, the next write is tried even if the socket is not
    /// known to be writable.
    pub(super) fn take_write_retry(&self) -> bool {
        self.retry_write.load(ORDER) && self.retry_write.swap(false, ORDER)
    }

    /// Records that several requests can be in progress at a time.
    #[cfg(feature = "tls")]
    pub(super) fn set_multiplexed(&self) {
        self.multiplexed.store(true, ORDER);
    }

    /// Records a response that is being sent until the guard is dropped.
    pub(super) fn start_response(self: &Arc<Self>) -> ResponseInProgress {
        self.sending.fetch_add(1, ORDER);
        ResponseInProgress(Arc::clone(self))
    }

    /// Records a response that waits for the client's window until the guard is dropped.
    #[cfg(feature = "tls")]
    pub(super) fn wait_for_window(self: &Arc<Self>) -> WindowWait {
        if self.waiting.fetch_add(1, ORDER) == 0 {
            self.last_sent.store(self.now(), ORDER);
        }
        WindowWait(Arc::clone(self))
    }

    /// Records that a request body was dropped before its end.
    pub(super) fn record_unread_body(&self) {
        self.unread_body.store(true, ORDER);
    }

    /// Whether the client could still be sending the body of a request whose response was sent.
    pub(super) fn has_unread_body(&self) -> bool {
        self.unread_body.load(ORDER)
    }

    /// Makes the next response the last one.
    pub(super) fn close_after_response(&self) {
        self.closes_after_response.store(true, ORDER);
    }

    /// Records a request that the application handles until the guard is dropped.
    pub(super) fn start_request(self: &Arc<Self>) -> RequestInProgress {
        self.head_since.store(NEVER, ORDER);
        // The head was read, so no earlier body can be unread.
        self.unread_body.store(false, ORDER);
        self.working.fetch_add(1, ORDER);
        RequestInProgress(Arc::clone(self))
    }

    fn at(&self, millis: u64) -> Instant {
        self.opened + Duration::from_millis(millis)
    }

    /// Returns the time at which a response will have been unread for too long, if one waits.
    fn unread_deadline(&self) -> Option<Instant> {
        let held_up = self.blocked_since.load(ORDER);
        let waiting = match self.waiting.load(ORDER) {
            0 => NEVER,
            _ => self.last_sent.load(ORDER),
        };
        let since = held_up.min(waiting);
        (since != NEVER).then(|| self.at(since) + UNREAD_RESPONSE_TIMEOUT)
    }

    /// Returns the time at which the connection expires if nothing happens. `None` while the
    /// application, which has its own timeouts, handles a request and no response waits for the client.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let unread = self.unread_deadline();
        if self.working.load(Ordering::Acquire) > 0 {
            return unread;
        }
        let last_write = self.last_write.load(ORDER);
        let after = match self.head_since.load(ORDER) {
            NEVER if self.multiplexed.load(ORDER) => self.at(last_write) + IDLE_TIMEOUT,
            NEVER => self.at(last_write.max(self.last_read.load(ORDER))) + IDLE_TIMEOUT,
            // A pipelined request may wait until the response before it is sent.
            since => self.at(since.max(last_write)) + self.head_timeout(),
        };
        Some(unread.map_or(after, |unread| unread.min(after)))
    }

    fn head_timeout(&self) -> Duration {
        if self.contention.exists() { CONTENDED_HEAD_TIMEOUT } else { HEAD_TIMEOUT }
    }

    /// Returns when the connection expires.
    pub(super) async fn expired(&self) {
        let mut check = self.opened + CONTENDED_HEAD_TIMEOUT;
        loop {
            tokio::time::sleep_until(check).await;
            let now = Instant::now();
            check = match self.deadline() {
                Some(deadline) if deadline <= now => return,
                // Contention can begin during a request head.
                Some(deadline) if self.head_since.load(ORDER) != NEVER => {
                    deadline.min(now + CONTENDED_HEAD_TIMEOUT)
                }
                // A response can begin to wait at any time.
                Some(deadline) => deadline.min(now + UNREAD_RESPONSE_TIMEOUT),
                None => now + HEAD_TIMEOUT,
            };
        }
    }

    /// Whether an expired connection gets one more attempt to write. The kernel reports a socket as
    /// writable only when a third of its buffer is free, which takes long with a slow client. So before
    /// the connection is closed, one write shows whether the client has read anything.
    pub(super) fn grant_write_retry(&self) -> bool {
        let since = self.blocked_since.load(ORDER);
        let tries = self.retried_for.swap(since, ORDER) != since;
        self.retry_write.store(tries, ORDER);
        tries
    }

    /// Returns the time since which the connection is between two requests, with nothing to send or to
    /// read; `None` if it is not idle.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let busy = self.working.load(Ordering::Acquire) > 0
            || self.sending.load(ORDER) > 0
            || self.head_since.load(ORDER) != NEVER
            || self.blocked_since.load(ORDER) != NEVER;
        // In HTTP/2, received bytes can be control frames, which do not keep a connection in use.
        let last_read = if self.multiplexed.load(ORDER) { 0 } else { self.last_read.load(ORDER) };
        (!busy).then(|| self.at(last_read.max(self.last_write.load(ORDER))))
    }

    /// Requests the connection to close if it is idle.
    pub(super) fn request_close(&self) {
        self.close_requested.store(true, ORDER);
        self.wake_to_close.notify_one();
    }

    /// Whether the connection was requested to close, and may still do so.
    pub(super) fn is_close_requested(&self) -> bool {
        self.close_requested.load(ORDER)
    }

    /// Returns when the connection is requested to close and is idle.
    pub(super) async fn until_idle_close(&self) {
        loop {
            self.wake_to_close.notified().await;
            if self.idle_since().is_some() {
                return;
            }
            // A request arrived meanwhile. The connection can be requested to close again.
            self.close_requested.store(false, ORDER);
        }
    }

    /// Waits for requests that arrive within `quiet`, and returns when the last of them is answered.
    pub(super) async fn until_late_requests_end(&self, quiet: Duration) {
        tokio::time::sleep(quiet).await;
        self.settled(quiet).await;
    }

    /// Returns when no byte was sent or received for `quiet` and no request is in progress.
    async fn settled(&self, quiet: Duration) {
        loop {
            let busy = self.working.load(Ordering::Acquire) > 0
                || self.sending.load(ORDER) > 0
                || self.blocked_since.load(ORDER) != NEVER;
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

/// A request that the application handles.
#[derive(Debug)]
pub(super) struct RequestInProgress(Arc<ConnectionTimeouts>);

impl RequestInProgress {
    /// Whether the connection closes after the response.
    pub(super) fn closes_connection(&self) -> bool {
        self.0.closes_after_response.load(ORDER)
    }
}

impl Drop for RequestInProgress {
    fn drop(&mut self) {
        // The response is about to be written.
        self.0.last_write.store(self.0.now(), ORDER);
        self.0.working.fetch_sub(1, Ordering::Release);
    }
}

/// A response that is not completely sent.
#[derive(Debug)]
pub(super) struct ResponseInProgress(Arc<ConnectionTimeouts>);

impl Drop for ResponseInProgress {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, ORDER);
    }
}

/// A response that waits for the client's window.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub(super) struct WindowWait(Arc<ConnectionTimeouts>);

#[cfg(feature = "tls")]
impl WindowWait {
    /// Records that content was sent.
    pub(super) fn record_sent(&self) {
        self.0.last_sent.store(self.0.now(), ORDER);
    }
}

#[cfg(feature = "tls")]
impl Drop for WindowWait {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, ORDER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn expires_after(timeouts: &ConnectionTimeouts) -> Duration {
        let started = Instant::now();
        timeouts.expired().await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_head_expires_after_half_a_minute() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        let trickle = async {
            for _ in 0..1000 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                timeouts.record_read();
            }
        };
        tokio::select! {
            taken = expires_after(&timeouts) => assert_eq!(taken, HEAD_TIMEOUT),
            () = trickle => panic!("it never expired"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_kept_for_three_minutes() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        timeouts.record_read();
        drop(timeouts.start_request());
        assert_eq!(expires_after(&timeouts).await, IDLE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_the_application_handles_never_expires() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        let working = timeouts.start_request();
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, timeouts.expired()).await.is_err());
        drop(working);
        assert!(tokio::time::timeout(hour, timeouts.expired()).await.is_ok());
    }

    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn bytes_on_a_multiplexed_connection_start_no_request() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        timeouts.set_multiplexed();
        drop(timeouts.start_request());
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Received bytes do not reset the timeout.
        timeouts.record_read();
        assert_eq!(expires_after(&timeouts).await, IDLE_TIMEOUT - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_head_has_less_time_during_contention() {
        let contention = Contention::default();
        let (slow, idle) = (
            ConnectionTimeouts::new(contention.clone()),
            ConnectionTimeouts::new(contention.clone()),
        );
        drop(idle.start_request());
        tokio::time::sleep(Duration::from_secs(1)).await;
        contention.set(true);
        let (slow, idle) = tokio::join!(expires_after(&slow), expires_after(&idle));
        assert_eq!(slow, CONTENDED_HEAD_TIMEOUT - Duration::from_secs(1));
        assert_eq!(idle, IDLE_TIMEOUT - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_settles_when_it_is_quiet_and_no_request_is_in_progress() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        let quiet = Duration::from_secs(2);
        let hour = Duration::from_secs(3600);
        let settles =
            async |within| tokio::time::timeout(within, timeouts.settled(quiet)).await.is_ok();
        assert!(settles(quiet).await);
        let working = timeouts.start_request();
        assert!(!settles(hour).await);
        drop(working);
        assert!(!settles(Duration::from_secs(1)).await);
        assert!(settles(hour).await);
        timeouts.record_blocked();
        assert!(!settles(hour).await);
        timeouts.record_write();
        assert!(settles(hour).await);
        timeouts.record_read();
        assert!(!settles(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_response_expires_even_during_a_request() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        let _working = timeouts.start_request();
        tokio::time::sleep(Duration::from_secs(100)).await;
        timeouts.record_blocked();
        tokio::time::sleep(Duration::from_secs(10)).await;
        timeouts.record_blocked();
        assert_eq!(
            expires_after(&timeouts).await,
            UNREAD_RESPONSE_TIMEOUT - Duration::from_secs(10)
        );
        // One write retry is granted, and no second one for the same bytes.
        assert!(timeouts.grant_write_retry() && timeouts.take_write_retry());
        assert!(!timeouts.take_write_retry() && !timeouts.grant_write_retry());
        timeouts.record_write();
        timeouts.record_blocked();
        assert_eq!(expires_after(&timeouts).await, UNREAD_RESPONSE_TIMEOUT);
        assert!(timeouts.grant_write_retry());
    }

    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn a_response_that_waits_for_a_window_expires_unless_some_of_it_is_sent() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        timeouts.set_multiplexed();
        drop(timeouts.start_request());
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (first, second) = (timeouts.wait_for_window(), timeouts.wait_for_window());
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            assert!(timeouts.deadline().is_some_and(|deadline| deadline > Instant::now()));
            first.record_sent();
            timeouts.record_write();
        }
        // Control frames do not count as progress.
        tokio::time::sleep(Duration::from_secs(50)).await;
        timeouts.record_write();
        timeouts.record_read();
        assert_eq!(timeouts.deadline(), Some(Instant::now() + Duration::from_secs(10)));
        drop((first, second));
        assert_eq!(timeouts.deadline(), Some(Instant::now() + IDLE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_between_requests_is_idle() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        // The first request has not arrived yet.
        assert_eq!(timeouts.idle_since(), None);
        let working = timeouts.start_request();
        assert_eq!(timeouts.idle_since(), None);
        let sending = timeouts.start_response();
        drop(working);
        assert_eq!(timeouts.idle_since(), None);
        drop(sending);
        let since = Instant::now();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(timeouts.idle_since(), Some(since));
        timeouts.record_read();
        assert_eq!(timeouts.idle_since(), None);
        // A connection that is no longer idle can be requested to close again.
        timeouts.request_close();
        assert!(timeouts.is_close_requested());
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, timeouts.until_idle_close()).await.is_err());
        assert!(!timeouts.is_close_requested());
        drop(timeouts.start_request());
        timeouts.request_close();
        assert!(tokio::time::timeout(second, timeouts.until_idle_close()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_has_its_own_half_minute() {
        let timeouts = ConnectionTimeouts::new(Contention::default());
        drop(timeouts.start_request());
        tokio::time::sleep(Duration::from_secs(100)).await;
        timeouts.record_read();
        assert_eq!(timeouts.deadline(), Some(Instant::now() + HEAD_TIMEOUT));
    }
}
