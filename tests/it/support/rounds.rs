//! Rounds of randomized tests, with numbers from the environment.

use super::noise::Noise;

/// A number in a variable of the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// How often something is killed, and the seed of the first time.
#[derive(Debug, Clone, Copy)]
pub struct Kills {
    pub rounds: u64,
    pub first: u64,
}

impl Kills {
    /// As `NIX_STORED_TEST_KILL_ROUNDS` and `NIX_STORED_TEST_KILL_SEED` say.
    pub fn from_env() -> Self {
        Self {
            rounds: number("NIX_STORED_TEST_KILL_ROUNDS").unwrap_or(10),
            first: number("NIX_STORED_TEST_KILL_SEED").unwrap_or_else(Noise::seed_of_today),
        }
    }

    pub fn seeds(self) -> impl Iterator<Item = u64> {
        (0..self.rounds).map(move |round| self.first.wrapping_add(round))
    }
}

/// Says which round it was that failed.
pub struct SeedOfFailure(pub u64);

impl Drop for SeedOfFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with NIX_STORED_TEST_KILL_SEED={}", self.0);
        }
    }
}
