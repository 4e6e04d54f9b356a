//! An upstream in trouble is left alone for a while, so that it stalls nobody.

use std::time::{Duration, Instant};

/// So many failures in a row, and it is left alone.
const PATIENCE: u32 = 3;

/// For how long at first; twice as long after each failed try, up to the second time.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What is known about an upstream's health.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    until: Option<Instant>,
}

/// A change worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is left alone from now on, for so long.
    Paused(Duration),
    /// It works again.
    Recovered,
}

impl Breaker {
    /// For how long it is to be left alone; none if it can be tried.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// The same for who tries it at once if he may. After a pause one request is let through, and
    /// the others wait for what becomes of it as long as another pause.
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

    /// It has failed; `asked` is for how long it wants to be left alone, if it said so.
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
