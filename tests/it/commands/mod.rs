//! The subcommands, run as the real binary on directories of chosen content.
//!
//! Programs: nix.

/// A cache's directory with chosen contents, and the binary at work on it.
pub mod given;

/// Arguments, help, and what they say.
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
/// `stats`, and what holds for all that only look.
mod stats;
/// `verify`
mod verify;
