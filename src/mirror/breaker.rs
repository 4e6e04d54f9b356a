//! The circuit breaker of an upstream: after repeated failures the upstream gets no requests for a
//! while, so that it does not delay clients.

use std::time::{Duration, Instant};

/// The number of consecutive failures that open the circuit.
const FAILURES_TO_OPEN: u32 = 3;

/// The time for which the circuit is open at first. It doubles after each failed test request.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The maximum time for which the circuit is open.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The circuit breaker of an upstream.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    failures: u32,
    open_until: Option<Instant>,
}

/// A change of the circuit that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CircuitChange {
    /// The circuit was opened for this time.
    Opened(Duration),
    /// The upstream works again.
    Closed,
}

impl CircuitBreaker {
    /// Returns how long the circuit stays open, or `None` if it is closed.
    pub(super) fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_until?.checked_duration_since(now).filter(|open_for| !open_for.is_zero())
    }

    /// Returns the time for which a request must wait, or `None` if the caller sends it
    /// immediately. After a pause one request is permitted as a test; the circuit stays open for
    /// the others, for another pause or until the test succeeds.
    pub(super) fn time_until_permitted(&mut self, now: Instant) -> Option<Duration> {
        let open_for = self.open_for(now);
        if open_for.is_none() && self.open_until.is_some() {
            self.open_until = Some(now + FIRST_PAUSE);
        }
        open_for
    }

    /// Records a successful response.
    pub(super) fn record_success(&mut self) -> Option<CircuitChange> {
        self.failures = 0;
        self.open_until.take().map(|_| CircuitChange::Closed)
    }

    /// Records a failure. `retry_after` is the pause that the upstream requested, if any.
    pub(super) fn record_failure(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
    ) -> Option<CircuitChange> {
        self.failures = self.failures.saturating_add(1);
        let pause = match retry_after {
            Some(pause) => pause.clamp(Duration::from_secs(1), MAX_PAUSE),
            None if self.failures < FAILURES_TO_OPEN => return None,
            None => {
                let doubled = 1 << (self.failures - FAILURES_TO_OPEN).min(10);
                (FIRST_PAUSE * doubled).min(MAX_PAUSE)
            }
        };
        let was_open = self.open_until.is_some();
        self.open_until = Some(now + pause);
        (!was_open).then_some(CircuitChange::Opened(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_circuit_opens_after_three_failures_and_is_tested_by_one_request() {
        let mut breaker = CircuitBreaker::default();
        let now = Instant::now();
        assert_eq!(breaker.record_failure(now, None), None);
        assert_eq!(breaker.record_failure(now, None), None);
        assert_eq!(breaker.time_until_permitted(now), None);
        assert_eq!(breaker.record_failure(now, None), Some(CircuitChange::Opened(FIRST_PAUSE)));
        assert_eq!(breaker.time_until_permitted(now), Some(FIRST_PAUSE));
        let later = now + FIRST_PAUSE;
        assert_eq!(breaker.open_for(later), None, "the test request was not sent yet");
        assert_eq!(breaker.time_until_permitted(later), None, "one request tests the upstream");
        assert!(breaker.time_until_permitted(later).is_some(), "the other requests wait");
        assert_eq!(
            breaker.record_failure(later, None),
            None,
            "an open circuit is not logged again"
        );
        assert_eq!(breaker.time_until_permitted(later), Some(2 * FIRST_PAUSE));
        assert_eq!(breaker.record_success(), Some(CircuitChange::Closed));
        assert_eq!(breaker.time_until_permitted(later), None);
        assert_eq!(breaker.record_success(), None);
    }

    #[test]
    fn an_upstream_can_request_a_pause() {
        let mut breaker = CircuitBreaker::default();
        let now = Instant::now();
        let retry_after = Duration::from_secs(7);
        assert_eq!(
            breaker.record_failure(now, Some(retry_after)),
            Some(CircuitChange::Opened(retry_after))
        );
        assert_eq!(breaker.time_until_permitted(now), Some(retry_after));
        let year = Duration::from_secs(366 * 86_400);
        breaker.record_failure(now, Some(year));
        assert_eq!(breaker.time_until_permitted(now), Some(MAX_PAUSE));
    }

    #[test]
    fn pauses_are_limited() {
        let mut breaker = CircuitBreaker::default();
        let now = Instant::now();
        for _ in 0..100 {
            breaker.record_failure(now, None);
        }
        assert_eq!(breaker.time_until_permitted(now), Some(MAX_PAUSE));
    }
}
