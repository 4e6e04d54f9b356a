//! All integration tests, as one binary. Every name is a claim.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it fails")]

/// What the tests share: the daemon as a child process, a cache in this process, a private Nix, and
/// the directories they live in.
mod support;

/// The house keeps its order.
mod layering;

/// The contract of a store, over every one there is.
mod conformance;

/// Who may do what: the whole table.
mod access;
/// GET and HEAD.
mod reading;
/// More than it can do at once.
mod overload;
/// A disk that is slow.
mod slow_disk;
/// How objects leave.
mod sending;
/// PUT.
mod uploading;
/// What an upload must be to be taken.
mod admission;
/// What compressed uploads may cost.
mod decoders;

/// What no decent client sends.
mod bad_input;
/// Texts from outside, wherever they are shown.
mod foreign_texts;
/// What goes, what stays.
mod retention;
/// The commands, with the real binary.
mod commands;
/// Narinfos that the strict parser refuses, and large ones.
mod odd_narinfos;
/// `nix-stored verify`.
mod commands_verify;
/// The disk is full, the power fails, the daemon is killed.
mod durability;
/// Start, slow clients, stop.
mod lifecycle;
/// What Prometheus reads, and what people make of it.
mod metrics;
/// Whether the store can be used.
mod health;
/// The directory is removed, replaced or somewhere else.
mod replaced;
/// Root serves another user's directory.
mod owner;
/// Who has uploaded and removed what.
mod audit;
/// A week of traffic.
mod soak;
/// The defects of the daemon that this one replaces, one test each.
mod predecessor;

/// What it listens on, and what it tells its service manager.
mod sockets;
/// A restart that nobody notices.
mod restart;
/// SIGHUP.
mod reload;
/// Thousands of clients that send a byte a second.
mod slow_clients;
/// Uploads and upstreams that hardly send anything.
mod slow_uploads;

/// The README and the pages under `docs/` that have snippets: what they say works.
#[cfg(feature = "upstream")]
mod readme;
/// The man page and the shell completions.
#[cfg(feature = "upstream")]
mod manual;
/// The NixOS modules, evaluated. They are those of a build with everything.
#[cfg(all(feature = "s3", feature = "tls", feature = "upstream"))]
mod nixos_module;
/// The systemd units.
#[cfg(feature = "upstream")]
mod units;
/// Docker, the Debian package, the proxies' configurations.
#[cfg(feature = "upstream")]
mod contrib;
/// A builder's queue.
#[cfg(feature = "upstream")]
mod push;

/// The promises as an unmodified Nix sees them: `nix copy`, substitution and everything around
/// them, over real sockets.
mod nix_client;
/// HTTPS and HTTP/2.
#[cfg(feature = "tls")]
mod tls;
/// A build that knows of neither.
#[cfg(not(feature = "tls"))]
#[path = "tls/left_out.rs"]
mod tls_left_out;
/// Pages for people.
#[cfg(feature = "pages")]
mod pages;
/// A build that has none.
#[cfg(not(feature = "pages"))]
#[path = "pages/left_out.rs"]
mod pages_left_out;
/// A cache in a bucket.
#[cfg(feature = "s3")]
mod s3;
/// Other caches behind this one.
#[cfg(feature = "upstream")]
mod upstream;
/// A build that knows of none.
#[cfg(not(feature = "upstream"))]
#[path = "upstream/left_out.rs"]
mod upstream_left_out;
