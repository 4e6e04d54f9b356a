//! Logs every removed object, with the actor and the reason.
//!
//! `http::observe` logs uploads, because it knows the client.

use std::fmt;

use tracing::info;

use crate::nix::CachePath;

/// The actor that removes objects, as it is logged.
#[derive(Debug, Clone)]
pub struct Actor(Option<String>);

/// A path with the leading slash of requests, so that one search finds the uploads and removals of
/// an object.
struct AsRequested<'a>(&'a CachePath);

impl fmt::Display for AsRequested<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl Actor {
    /// The daemon itself.
    pub fn collector() -> Self {
        Self(Some("collector".to_owned()))
    }

    /// An actor with this name.
    pub fn named(name: String) -> Self {
        Self(Some(name))
    }

    /// An actor that logs nothing.
    pub fn silent() -> Self {
        Self(None)
    }

    pub(crate) fn log_removal(
        &self,
        path: &CachePath,
        store_path: Option<&str>,
        size: u64,
        reason: &str,
    ) {
        if let Some(by) = &self.0 {
            info!(
                target: "audit",
                by,
                path = %AsRequested(path),
                store_path,
                size_bytes = size,
                reason,
                "deleted"
            );
        }
    }

    pub(crate) fn log_quarantine(&self, path: &CachePath, store_path: Option<&str>) {
        if let Some(by) = &self.0 {
            let path = AsRequested(path);
            info!(target: "audit", by, %path, store_path, reason = "damaged", "quarantined");
        }
    }
}
