//! The daemon as a process: start, sockets, systemd notifications, reload, restart, shutdown, health, and the memory and
//! descriptors it uses over a long time.
//!
//! Programs: nix.

/// `/health` and the command `health`.
pub mod health;
mod missing_features;
mod reload;
mod restart;
mod soak;
mod sockets;
mod start_stop;
