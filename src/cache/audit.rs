//! What is removed is told, object by object: who has it removed, and why.
//!
//! Uploads are told by `http::observe`, which knows whom they are from.

use std::fmt;

use tracing::info;

use super::gc::Reason;
use crate::nix::CachePath;

/// Who removes objects.
#[derive(Debug, Clone)]
pub struct Agent(Option<String>);

/// A path as requests have it, so that uploads and removals of one object are found together.
struct AsRequested<'a>(&'a CachePath);

impl fmt::Display for AsRequested<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl Agent {
    /// The daemon itself.
    pub fn collector() -> Self {
        Self(Some("collector".to_owned()))
    }

    /// Somebody with this name.
    pub fn named(name: String) -> Self {
        Self(Some(name))
    }

    /// Somebody who looks on, where no log is kept.
    pub fn onlooker() -> Self {
        Self(None)
    }

    pub(super) fn has_removed(
        &self,
        path: &CachePath,
        store_path: Option<&str>,
        size: u64,
        reason: Reason,
    ) {
        if let Some(by) = &self.0 {
            info!(
                target: "audit",
                by,
                path = %AsRequested(path),
                store_path,
                size_bytes = size,
                reason = reason.as_str(),
                "deleted"
            );
        }
    }

    pub(super) fn has_put_aside(&self, path: &CachePath, store_path: Option<&str>) {
        if let Some(by) = &self.0 {
            let path = AsRequested(path);
            info!(target: "audit", by, %path, store_path, reason = "damaged", "put aside");
        }
    }
}
