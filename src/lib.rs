//! nix-stored: a standalone HTTP binary cache for Nix.
//!
//! It accepts uploads from plain `nix copy --to http://…` and serves them to plain substituters: one binary,
//! one directory or bucket, no database, no client of its own.
//!
//! # Modules
//!
//! Each module uses only the modules below it; `tests/it/layering/mod.rs` checks this. From the top:
//!
//! - [`commands`]: the subcommands. Only this module uses `anyhow`.
//! - [`net`]: sockets, TLS, connections, timeouts, and the drain at shutdown.
//! - [`http`]: translates requests into calls of the cache, and results into status codes. No other module
//!   has status codes, except for the client of upstreams.
//! - [`cache`]: verifies uploads, keeps closures whole, and fetches missing objects from upstreams.
//! - [`store`]: stores bytes in a directory or a bucket; an object is staged, and then published in one step.
//! - [`config`]: parses the `NIX_STORED_*` variables.
//! - [`metrics`]: counters, and their text format for Prometheus.
//! - [`logging`]: the log on standard error.
//! - [`nix`]: parsers and printers of Nix's formats; no I/O.
//!
//! # Path of a request
//!
//! Upload: socket → `http::observe` → `http::authorize` → `http::objects::put` → [`cache::Cache::put`]
//! → `cache::ingest` (hashing and writing on the blocking pool) → [`store::Upload::commit`] → 201.
//!
//! Download: socket → … → `http::objects::get` → [`cache::Cache::get`] → [`store::Store::get`] →
//! `http::conditional` → body.

pub mod commands;
pub mod net;
pub mod http;
pub mod cache;
pub mod store;
pub mod config;
pub mod metrics;
pub mod logging;
pub mod nix;
