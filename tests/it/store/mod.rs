//! The store: one contract for directories and buckets, and what holds for directories when the disk fails or fills up,
//! the power fails, the process is killed, or the directory is replaced.
//!
//! Programs: nix, strace.

pub mod conformance;
mod durability;
mod owner;
mod replaced;
mod slow_disk;
