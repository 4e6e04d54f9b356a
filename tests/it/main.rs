//! All integration tests, as one binary, with a folder for each part of the program.
//!
//! The page at the top of a folder's `mod.rs` says what its tests show. Its line `Programs:` lists the programs that
//! they run; `tests/run` reads that line.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation fails the test")]

mod support;

mod commands;
mod http;
mod layering;
mod lifecycle;
#[cfg(feature = "upstream")]
mod mirror;
mod nix_client;
/// The files checked there describe a build with all features.
#[cfg(all(feature = "s3", feature = "tls", feature = "upstream"))]
mod packaging;
#[cfg(feature = "pages")]
mod pages;
mod retention;
#[cfg(feature = "s3")]
mod s3;
mod store;
