//! Garbage collection: what is removed and what is kept, how uses are recorded, and what interrupts a collection.
//!
//! Programs: nix, strace.

/// A directory with chosen times.
mod dir;
/// Caches made up at random.
mod world;

/// Narinfos that the strict parser refuses, and large ones.
mod odd_narinfos;
/// Any cache, any limits.
mod properties;
/// What is recorded of uses, and when.
mod uses;
/// What gets into the way of a collection.
mod collecting;
/// The daemon collects by itself.
mod running;
/// The power fails meanwhile.
mod power_cut;
