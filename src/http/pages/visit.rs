//! The context of a page request.

use std::sync::Arc;
use std::time::SystemTime;

use super::address::Address;
use crate::cache::Cache;
use crate::config::Access;

/// Context of a page request.
pub(super) struct Visit {
    pub cache: Arc<Cache>,
    pub access: Arc<Access>,
    pub address: Address,
    pub now: SystemTime,
}
