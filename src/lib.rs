//! nix-stored: a standalone HTTP binary cache for Nix.
//!
//! It takes uploads from plain `nix copy --to http://…` and serves them to plain substituters. One
//! binary, one directory, no database, no client of its own.
//!
//! # The house
//!
//! Each wing is a module that knows only the wings below it; `tests/it/layering/mod.rs` holds it to
//! that. From the top:
//!
//! - [`commands`] is what the program can be told to do. `anyhow` lives here and in `main` only.
//! - [`net`] owns sockets: accepting, timeouts, the drain at the end.
//! - [`http`] turns requests into calls of the cache, and results into status codes. There are no
//!   status codes elsewhere, but those that upstreams answer.
//! - [`cache`] keeps the promises: what is taken is what it claims to be, what is needed stays, and
//!   what is not here is fetched from the caches behind it.
//! - [`store`] is where bytes rest, staged and published in one step.
//! - [`config`] reads the `NIX_STORED_*` variables.
//! - [`metrics`] counts, for whoever asks how it goes.
//! - [`logging`] writes the log.
//! - [`nix`] is Nix's vocabulary: pure parsers and printers.
//!
//! # The way of a request
//!
//! In: socket → `http::observe` → `http::authorize` → `http::objects::put` → [`cache::Cache::put`]
//! → `cache::ingest` (hashing and writing on the blocking pool) → [`store::Upload::commit`] → 201.
//!
//! Out: socket → … → `http::objects::get` → [`cache::Cache::get`] → [`store::Store::get`] →
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
