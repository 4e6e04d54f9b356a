//! The subcommands, run as the real binary on directories of chosen content.
//!
//! Programs: nix.

/// Cache directories with known content, and commands run on them.
pub mod command_cache;

/// Arguments, help and their documentation.
mod arguments;
/// `check-config`
mod check_config;
/// `delete`
mod delete;
/// `gc`
mod gc;
/// `migrate`
mod migrate;
/// `pin`, `unpin` and `pins`
mod pins;
/// `stats`, and properties of all commands that only read.
mod stats;
/// `verify`
mod verify;
