//! Garbage collection: what is removed and what is kept, how uses are recorded, and what interrupts a collection.
//!
//! Programs: nix, strace.

/// A cache directory with known times.
mod dir;
/// Random caches.
mod random_cache;

/// Unusual and large narinfos.
mod odd_narinfos;
/// Random caches and limits.
mod properties;
/// Recorded uses.
mod uses;
/// Interference with collections.
mod collecting;
/// Collections by the daemon.
mod running;
/// Power cuts during collections.
mod power_cut;
