//! A cache in a bucket: the real binary, and the S3 server `s3s-fs` in this process or, where ignored, Garage.
//!
//! Programs: curl, nginx, nix, openssl.

/// Servers with buckets, and daemons over them.
pub mod place;

/// The commands, on a bucket.
mod commands;
/// Several processes act on the same objects at the same time.
mod at_once;
/// What a daemon that was killed leaves.
mod kill;
/// Many large uploads at once.
mod memory;
/// From a directory into a bucket, and back.
mod migrate;
/// What Nix puts in comes out.
mod nix;
/// Downloads that do not pass through the daemon.
mod redirect;
/// Several daemons over one bucket.
mod several;
/// Uploads that hardly arrive.
mod slow;
/// The server, or a client, stands still in the middle of a read.
mod stalls;
/// What a start finds out.
mod start;
/// Something else than the server answers.
mod strangers;
/// Temporary files.
mod temporary;
/// The server is in trouble.
mod trouble;

/// Three servers that hold the same, two daemons, and a balancer, while some of them are killed.
mod cluster;
