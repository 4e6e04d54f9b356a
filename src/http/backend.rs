//! The cache behind the requests for objects, with its upstreams if this build supports them. All
//! differences in `http` between the two builds are in this file.

use std::sync::Arc;
#[cfg(feature = "pages")]
use std::time::Duration;

use crate::cache::Cache;

/// A cache with its upstreams, if any are configured.
#[cfg(feature = "upstream")]
pub type Backend = crate::mirror::Mirror;

/// A cache. This build does not support upstreams.
#[cfg(not(feature = "upstream"))]
pub type Backend = Cache;

/// An upstream on the front page.
#[cfg(feature = "pages")]
pub(super) struct UpstreamRow {
    pub url: String,
    /// The time for which its circuit stays open, or `None` if it is closed.
    pub circuit_open: Option<Duration>,
    /// The public keys that its narinfos must be signed with.
    pub keys: Vec<String>,
}

#[cfg(feature = "upstream")]
mod with_upstreams {
    use super::{Arc, Backend, Cache};
    use crate::mirror::Upstreams;

    /// A backend without upstreams.
    pub(in crate::http) fn local(cache: Arc<Cache>) -> Arc<Backend> {
        Arc::new(Backend::new(cache, Upstreams::none()))
    }

    /// Whether reading an object can store it in the cache.
    pub(in crate::http) fn reads_store_objects(backend: &Backend) -> bool {
        backend.stores_objects()
    }

    /// Returns the upstreams in the configured order.
    #[cfg(feature = "pages")]
    pub(in crate::http) fn upstream_rows(backend: &Backend) -> Vec<super::UpstreamRow> {
        let row = |upstream: crate::mirror::UpstreamStatus| super::UpstreamRow {
            url: upstream.url,
            circuit_open: upstream.circuit_open,
            keys: upstream.keys,
        };
        backend.upstreams().into_iter().map(row).collect()
    }
}

#[cfg(not(feature = "upstream"))]
mod without_upstreams {
    use super::{Arc, Backend, Cache};

    pub(in crate::http) fn local(cache: Arc<Cache>) -> Arc<Backend> {
        cache
    }

    pub(in crate::http) fn reads_store_objects(_: &Backend) -> bool {
        false
    }

    #[cfg(feature = "pages")]
    pub(in crate::http) fn upstream_rows(_: &Backend) -> Vec<super::UpstreamRow> {
        Vec::new()
    }
}

#[cfg(feature = "upstream")]
pub(super) use with_upstreams::*;
#[cfg(not(feature = "upstream"))]
pub(super) use without_upstreams::*;
