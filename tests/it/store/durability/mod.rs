//! No wrong, partial or lost objects when the disk, the power or the process fails.

/// Killed in the middle of a collection.
mod collect_kill;
/// A directory cannot be synced.
mod failed_sync;
/// The disk is full.
mod full_disk;
/// Killed in the middle of uploads.
mod kill;
/// Large uploads and little memory.
mod memory;
/// What a trace of system calls must show.
mod order;
/// The power fails.
mod power_cut;
/// The disk takes nothing any more.
mod read_only;
/// System calls that not every kernel, sandbox or file system has.
mod system_calls;
