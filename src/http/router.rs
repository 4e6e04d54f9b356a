//! The whole URL space and the whole stack, each in one place.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use super::authorize::{Authorize, AuthorizeLayer};
use super::objects;
use super::observe::{Observe, ObserveLayer};
use crate::cache::Cache;
use crate::config::Access;

/// The daemon as a service: what a socket is put in front of, and what tests call.
pub type App = Observe<Authorize<Router>>;

/// Serves `cache` to those whom `access` lets.
pub fn app(cache: Arc<Cache>, access: Access) -> App {
    // Every name goes the same way: `CachePath` is the grammar, and parses it once. As a fallback it
    // does not pay for captures that nobody reads. The layers are around the router and not inside,
    // because axum boxes what is inside, once a layer.
    let objects = get(objects::get)
        .head(objects::head)
        .put(objects::put)
        .fallback(objects::other_method)
        .with_state(cache);
    let router = Router::new().fallback_service(objects).layer(CatchPanicLayer::new());
    ServiceBuilder::new().layer(ObserveLayer).layer(AuthorizeLayer::new(access)).service(router)
}
