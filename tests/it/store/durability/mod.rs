//! No wrong, partial or lost objects when the disk, the power or the process fails.

/// Kills during collections.
mod collect_kill;
/// Directories whose sync fails.
mod failed_sync;
/// A full disk.
mod full_disk;
/// Kills during uploads.
mod kill;
/// The memory of large uploads.
mod memory;
/// The required order of system calls.
mod order;
/// Power cuts.
mod power_cut;
/// A read-only disk.
mod read_only;
/// System calls that a kernel, sandbox or file system may not have.
mod system_calls;
