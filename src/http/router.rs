//! The whole URL space and the whole stack, each in one place.

use std::sync::Arc;

use axum::Router;
use tower::ServiceBuilder;

use super::authorize::{Authorize, AuthorizeLayer};
use super::objects;
use super::observe::{Observe, ObserveLayer};
use crate::cache::Cache;
use crate::config::Access;

/// What requests are answered from.
pub(super) struct Site {
    pub cache: Arc<Cache>,
    /// Who may do what, for pages to tell. It is `authorize` that sees to it.
    #[cfg(feature = "pages")]
    pub access: Access,
}

/// The daemon as a service: what a socket is put in front of, and what tests call.
pub type App = Observe<Authorize<Router>>;

/// Serves `cache` to those whom `access` lets.
pub fn app(cache: Arc<Cache>, access: Access) -> App {
    // Every name and method goes the same way: `CachePath` is the grammar, and parses a name once.
    // A fallback pays for no captures that nobody reads, and one handler for no clone of several.
    // The layers are around the router and not inside, because axum boxes what is inside, once a
    // layer.
    let site = Site {
        cache,
        #[cfg(feature = "pages")]
        access: access.clone(),
    };
    let router = Router::new().fallback(objects::answer).with_state(Arc::new(site));
    ServiceBuilder::new().layer(ObserveLayer).layer(AuthorizeLayer::new(access)).service(router)
}
