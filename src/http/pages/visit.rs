//! The context of a page request.

use std::sync::Arc;
use std::time::SystemTime;

use super::address::Address;
use crate::browse::Browser;
use crate::config::Access;
use crate::http::backend::UpstreamRow;

/// Context of a page request.
pub(super) struct Visit {
    pub browser: Arc<Browser>,
    pub upstreams: Vec<UpstreamRow>,
    pub access: Arc<Access>,
    pub address: Address,
    pub now: SystemTime,
}
