//! An unmodified Nix against the real binary, over sockets: `nix copy`, substitution, and the commands that query a cache.
//!
//! Each test has private stores in a scratch directory, builds with `/bin/sh`, and needs no network and no `/nix`.
//! With `NIX_STORED_TEST_IN_BUCKETS=1` the caches are in buckets.
//!
//! Programs: nix.

/// Garbage is collected while clients upload and substitute.
mod collect_race;
/// Two uploads at the same time, of the same things.
mod concurrent;
/// netrc: who may read, who may write, and what the others are told.
mod credentials;
/// The directory is a `file://` cache of Nix's own, in both directions.
mod directory;
/// Everything that Nix can ask a cache besides copying.
mod inspect;
/// Store URL parameters that change what is uploaded.
mod options;
/// A builder that uploads from its post-build hook.
mod post_build_hook;
/// What Nix shows when an upload is not taken.
mod refusals;
/// A cache that is sized down.
mod retention;
/// What goes in comes out: `nix copy --to`, then `nix copy --from` and substitution.
mod round_trip;
