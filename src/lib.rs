//! nix-stored: a standalone HTTP binary cache for Nix.
//!
//! It accepts uploads from plain `nix copy --to http://…` and serves them to plain substituters. One
//! binary, one directory or bucket, no database, no client of its own.
//!
//! # Architecture
//!
//! Each module uses only the modules below it, and no two files use each other;
//! `tests/it/layering/` checks both. From the top:
//!
//! - [`commands`]: one file for each subcommand; the only place with `anyhow`.
//! - [`net`]: sockets, TLS, HTTP/1.1 and HTTP/2 connections, timeouts, the drain at shutdown.
//! - [`http`]: routes, access control, headers, web pages, and the only table of status codes.
//! - [`browse`]: the data behind the web pages.
//! - `migrate`: copies one cache into another.
//! - `verify`: checks all stored objects, and quarantines damaged ones.
//! - [`retention`]: garbage collection and pins.
//! - [`mirror`]: upstream caches, as a decorator over the cache with the same operations.
//! - [`cache`]: the core. What it accepts has been verified, and what it serves is complete.
//! - `ingest`: receives and stages the bodies of uploads.
//! - `unpack`: decompresses NARs within a budget of memory.
//! - [`inventory`]: what is in a store: paths, references, sizes, uses.
//! - [`store`]: where bytes rest, in a directory or a bucket.
//! - [`config`]: the `NIX_STORED_*` variables.
//! - [`metrics`]: every series, named once.
//! - `logging`: the log.
//! - [`nix`]: Nix's formats: pure parsers and printers.
//!
//! # The way of a request
//!
//! Upload: socket → `http::route` → `http::authorize` → [`cache::Cache::put`] → `ingest` (hashes and
//! writes on the blocking pool) → [`store::Upload::commit`] → 201.
//!
//! Download: socket → … → [`cache::Cache::get`] → [`store::Store::get`] → `http::conditional` → body.
//!
//! With upstreams, [`mirror::Mirror`] stands between [`http`] and [`cache`].

// What no test uses from outside is visible in the crate only, so that dead code is found.
#![warn(unreachable_pub)]

pub mod commands;
pub mod net;
pub mod http;
pub mod browse;
mod migrate;
mod verify;
pub mod retention;
#[cfg(feature = "upstream")]
pub mod mirror;
pub mod cache;
mod ingest;
mod unpack;
pub mod inventory;
pub mod store;
pub mod config;
pub mod metrics;
mod logging;
pub mod nix;
