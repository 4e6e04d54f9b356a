//! The state that all requests share.

use std::sync::Arc;

use super::authorize::AccessPolicy;
use super::backend::{self, Backend};
use crate::browse::Browser;
use crate::cache::Cache;
use crate::store::HealthWatch;

/// The state that all requests share.
pub struct AppState {
    pub(super) cache: Arc<Cache>,
    /// `cache` with its upstreams, if any.
    pub(super) backend: Arc<Backend>,
    pub(super) health: HealthWatch,
    pub(super) browser: Arc<Browser>,
    /// For pages and the health check. `authorize` enforces it.
    pub(super) policy: AccessPolicy,
}

impl AppState {
    /// Creates the state. `backend` contains `cache`; `policy` decides which clients have access.
    pub fn new(cache: Arc<Cache>, backend: Arc<Backend>, policy: impl Into<AccessPolicy>) -> Self {
        Self {
            backend,
            health: HealthWatch::new(Arc::clone(cache.store())),
            browser: Arc::new(Browser::new(Arc::clone(&cache), None)),
            policy: policy.into(),
            cache,
        }
    }

    /// Serves a cache without upstreams.
    pub fn local(cache: Arc<Cache>, policy: impl Into<AccessPolicy>) -> Self {
        let backend = backend::local(Arc::clone(&cache));
        Self::new(cache, backend, policy)
    }

    /// The data behind the pages.
    pub fn browser(&self) -> &Arc<Browser> {
        &self.browser
    }

    /// Sets the data behind the pages.
    #[must_use]
    pub fn with_browser(self, browser: Browser) -> Self {
        Self { browser: Arc::new(browser), ..self }
    }
}
