//! The state of the HTTP service.

use std::sync::Arc;

use super::authorize::AccessPolicy;
use crate::cache::Cache;

/// The state that requests are answered from.
pub(super) struct AppState {
    pub cache: Arc<Cache>,
    /// For pages and the health check; `authorize` enforces the policy.
    pub policy: AccessPolicy,
}
