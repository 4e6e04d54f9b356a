//! The number of rounds of randomized tests, from the environment.

use super::noise::Noise;

/// Parses an environment variable as a number.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The number of kills, and the seed of the first one.
#[derive(Debug, Clone, Copy)]
pub struct KillRounds {
    pub rounds: u64,
    pub first: u64,
}

impl KillRounds {
    /// Reads `NIX_STORED_TEST_KILL_ROUNDS` and `NIX_STORED_TEST_KILL_SEED`.
    pub fn from_env() -> Self {
        Self {
            rounds: number("NIX_STORED_TEST_KILL_ROUNDS").unwrap_or(10),
            first: number("NIX_STORED_TEST_KILL_SEED").unwrap_or_else(Noise::random_seed),
        }
    }

    pub fn seeds(self) -> impl Iterator<Item = u64> {
        (0..self.rounds).map(move |round| self.first.wrapping_add(round))
    }
}

/// Prints the seed of a round if it panics.
pub struct SeedOfFailure(pub u64);

impl Drop for SeedOfFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with NIX_STORED_TEST_KILL_SEED={}", self.0);
        }
    }
}
