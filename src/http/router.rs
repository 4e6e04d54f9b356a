//! The whole URL space and the whole stack, each in one place.

use std::sync::Arc;

use axum::Router;
use tower::ServiceBuilder;

use super::authorize::{Authorize, AuthorizeLayer, Gate};
use super::objects;
use super::observe::{Observe, ObserveLayer};
use crate::cache::Cache;

/// The daemon as a service: what a socket is put in front of, and what tests call.
pub type App = Observe<Authorize<Router>>;

/// Serves `cache` to those whom `gate` lets.
pub fn app(cache: Arc<Cache>, gate: impl Into<Gate>) -> App {
    // Every name and method goes the same way: `CachePath` is the grammar, and parses a name once.
    // A fallback pays for no captures that nobody reads, and one handler for no clone of several.
    // The layers are around the router and not inside, because axum boxes what is inside, once a
    // layer.
    let router = Router::new().fallback(objects::answer).with_state(cache);
    ServiceBuilder::new()
        .layer(ObserveLayer)
        .layer(AuthorizeLayer::new(gate.into()))
        .service(router)
}
