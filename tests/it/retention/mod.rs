//! What goes, what stays, and how the cache knows what is in use.

/// A directory with chosen times.
mod dir;
/// Caches made up at random.
mod world;

/// Any cache, any limits.
mod properties;
/// What is recorded of uses, and when.
mod uses;
/// What gets into the way of a collection.
mod collecting;
/// The daemon collects by itself.
mod running;
/// The power fails meanwhile.
mod power_cut;
