//! Requests and responses: what may be read and uploaded and by whom, how objects are sent, what clients that are
//! slow or malicious may cost, metrics, and TLS.
//!
//! Most tests call the router in this process; those that depend on sockets or on timeouts start the daemon.
//!
//! Programs: curl, lzip, nix, openssl, promtool, strace.

mod access;
mod admission;
mod audit;
mod bad_input;
mod decoders;
mod untrusted_text;
mod metrics;
mod overload;
mod go_daemon;
mod reading;
mod sending;
mod slow_clients;
mod slow_uploads;
#[cfg(feature = "tls")]
mod tls;
mod uploading;
