//! A cache in a bucket: the real binary, and the S3 server `s3s-fs` in this process or, where ignored, Garage.
//!
//! Programs: curl, nginx, nix, openssl.

/// S3 servers, and daemons with buckets on them.
pub mod server;

/// Commands on a bucket.
mod commands;
/// Concurrent changes of the same objects.
mod concurrent;
/// Killed daemons.
mod kill;
/// Memory for many large uploads.
mod memory;
/// Migrations between directories and buckets.
mod migrate;
/// Copies by Nix.
mod nix;
/// Redirects to the server.
mod redirect;
/// Several daemons on one bucket.
mod several_daemons;
/// Slow uploads.
mod slow;
/// Stalled servers and clients.
mod stalls;
/// Checks at start.
mod start;
/// Responses of other servers.
mod foreign_responses;
/// Temporary files.
mod temporary;
/// Errors of the server.
mod errors;

/// Three servers with replicas, two daemons, and a load balancer, some of which are killed.
mod cluster;
