//! How much of everything.

use std::time::Duration;

use crate::support::bench::{GIB, MIB};

/// The sizes of all rows.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Distinct narinfos that are asked for.
    pub narinfos: usize,
    /// How long they are asked for, a turn.
    pub storm: Duration,
    /// The file inside the large NAR.
    pub large: u64,
    /// How often one connection fetches the large NAR in a turn. CPU time comes in ticks of 10 ms, and
    /// one fetch has only some thirty of them.
    pub repeat: u64,
    /// Small NARs uploaded, a turn.
    pub small_uploads: usize,
    /// Paths of the shoot-out.
    pub shootout_paths: usize,
    /// All NARs of the shoot-out together.
    pub shootout_bytes: u64,
    /// Tiny paths that Nix copies.
    pub copied_paths: usize,
    /// Connections that are kept alive.
    pub kept_alive: usize,
    /// What each upload has sent when it stops half-way.
    pub half_upload: u64,
    /// How long slow readers read.
    pub slow_reading: Duration,
    /// Narinfos in the directory that a server starts on.
    pub start_narinfos: usize,
}

impl Sizes {
    /// The sizes that the goals are about.
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

    /// Sizes that take seconds.
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
