//! The circuit breaker of an upstream: after repeated failures the upstream gets no requests for a
//! while, so that it does not delay clients.

use std::time::{Duration, Instant};

/// The number of consecutive failures that open the circuit.
const PATIENCE: u32 = 3;

/// For how long at first; twice as long after each failed try, up to the second time.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The circuit breaker of an upstream.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    until: Option<Instant>,
}

/// A change of the circuit that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The circuit is open for this time.
    Paused(Duration),
    /// It works again.
    Recovered,
}

impl Breaker {
    /// Returns how long the circuit stays open, or `None` if it is closed.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// The same for a caller that sends a request immediately. After a pause one request is let
    /// through as a test; the others are refused for another pause, or until it succeeds.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        let left = self.left(now);
        if left.is_none() && self.until.is_some() {
            self.until = Some(now + PAUSE);
        }
        left
    }

    /// It has answered.
    pub(super) fn worked(&mut self) -> Option<Change> {
        self.failures = 0;
        self.until.take().map(|_| Change::Recovered)
    }

    /// Records a failure; `asked` is the pause that the upstream requested, if any.
    pub(super) fn failed(&mut self, now: Instant, asked: Option<Duration>) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let pause = match asked {
            Some(asked) => asked.clamp(Duration::from_secs(1), LONGEST_PAUSE),
            None if self.failures < PATIENCE => return None,
            None => {
                let doubled = 1 << (self.failures - PATIENCE).min(10);
                (PAUSE * doubled).min(LONGEST_PAUSE)
            }
        };
        let told = self.until.is_some();
        self.until = Some(now + pause);
        (!told).then_some(Change::Paused(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_left_alone_after_three_failures_and_tried_again_by_one() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        assert_eq!(breaker.failed(now, None), None);
        assert_eq!(breaker.failed(now, None), None);
        assert_eq!(breaker.pause(now), None);
        assert_eq!(breaker.failed(now, None), Some(Change::Paused(PAUSE)));
        assert_eq!(breaker.pause(now), Some(PAUSE));
        let later = now + PAUSE;
        assert_eq!(breaker.left(later), None, "to ask is not to try");
        assert_eq!(breaker.pause(later), None, "one may try");
        assert!(breaker.pause(later).is_some(), "and the others wait");
        assert_eq!(breaker.failed(later, None), None, "that is no news");
        assert_eq!(breaker.pause(later), Some(2 * PAUSE));
        assert_eq!(breaker.worked(), Some(Change::Recovered));
        assert_eq!(breaker.pause(later), None);
        assert_eq!(breaker.worked(), None);
    }

    #[test]
    fn it_can_ask_to_be_left_alone() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        let asked = Duration::from_secs(7);
        assert_eq!(breaker.failed(now, Some(asked)), Some(Change::Paused(asked)));
        assert_eq!(breaker.pause(now), Some(asked));
        let year = Duration::from_secs(366 * 86_400);
        breaker.failed(now, Some(year));
        assert_eq!(breaker.pause(now), Some(LONGEST_PAUSE));
    }

    #[test]
    fn pauses_have_an_end() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        for _ in 0..100 {
            breaker.failed(now, None);
        }
        assert_eq!(breaker.pause(now), Some(LONGEST_PAUSE));
    }
}
