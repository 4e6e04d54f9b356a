//! An unmodified Nix against the real binary, over sockets: `nix copy`, substitution, and the commands that query a cache.
//!
//! Each test has private stores in a scratch directory, builds with `/bin/sh`, and needs no network and no `/nix`.
//! With `NIX_STORED_TEST_IN_BUCKETS=1` the caches are in buckets.
//!
//! Programs: nix.

/// Collections while clients upload and substitute.
mod collect_race;
/// Concurrent uploads of the same paths.
mod concurrent;
/// Users in netrc, and the messages for others.
mod credentials;
/// The directory as a `file://` cache of Nix.
mod directory;
/// Requests of Nix other than copies.
mod inspect;
/// Store URL parameters that change the uploaded objects.
mod options;
/// Uploads by a post-build hook.
mod post_build_hook;
/// The messages of Nix for refused uploads.
mod refusals;
/// A cache whose limit shrinks.
mod retention;
/// `nix copy --to`, then `nix copy --from` and substitution.
mod round_trip;
