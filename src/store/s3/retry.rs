//! The retries of requests.

use std::time::Duration;

/// The time for which a request is retried before it fails. Clients of the cache wait meanwhile,
/// and Nix retries by itself.
pub(super) const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the pause before the next attempt, after the attempt with this number (from 0).
pub(super) fn pause(attempt: u32) -> Duration {
    let longest = Duration::from_secs(2);
    (Duration::from_millis(100) * 3_u32.saturating_pow(attempt)).min(longest)
}
