//! The sizes of the measurements.

use std::time::Duration;

use crate::support::bench::{GIB, MIB};

/// The sizes of all rows.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The number of distinct narinfos that are requested.
    pub narinfos: usize,
    /// The duration of a turn of narinfo requests.
    pub storm: Duration,
    /// The size of the file in the large NAR.
    pub large: u64,
    /// The number of downloads of the large NAR by one connection in a turn. CPU time is counted in
    /// ticks of 10 ms, and one download takes only some thirty of them.
    pub repeat: u64,
    /// The number of small NARs uploaded in a turn.
    pub small_uploads: usize,
    /// The number of paths of the shoot-out.
    pub shootout_paths: usize,
    /// The total size of the NARs of the shoot-out.
    pub shootout_bytes: u64,
    /// The number of tiny paths copied by Nix.
    pub copied_paths: usize,
    /// The number of idle connections.
    pub kept_alive: usize,
    /// The number of bytes sent by each incomplete upload.
    pub half_upload: u64,
    /// The duration of slow downloads.
    pub slow_reading: Duration,
    /// The number of narinfos in the directory that a server starts on.
    pub start_narinfos: usize,
}

impl Sizes {
    /// The sizes for the goals.
    pub const FULL: Self = Self {
        narinfos: 10_000,
        storm: Duration::from_secs(2),
        large: GIB,
        repeat: 4,
        small_uploads: 5_000,
        shootout_paths: 373,
        shootout_bytes: 520 * MIB,
        copied_paths: 2_000,
        kept_alive: 10_000,
        half_upload: 32 * MIB,
        slow_reading: Duration::from_secs(2),
        start_narinfos: 100_000,
    };

    /// Sizes for a run of some seconds.
    pub const QUICK: Self = Self {
        narinfos: 500,
        storm: Duration::from_millis(200),
        large: 32 * MIB,
        repeat: 1,
        small_uploads: 300,
        shootout_paths: 40,
        shootout_bytes: 20 * MIB,
        copied_paths: 20,
        kept_alive: 500,
        half_upload: 4 * MIB,
        slow_reading: Duration::from_millis(200),
        start_narinfos: 2_000,
    };
}
