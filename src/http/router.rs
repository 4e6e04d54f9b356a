//! The service of the daemon: observation, access control and dispatch of requests.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use tower::ServiceBuilder;
use tower_service::Service;

use super::authorize::AuthorizeLayer;
use super::call::{Answer, Call};
use super::error::HttpError;
use super::observe::ObserveLayer;
#[cfg(feature = "pages")]
use super::pages;
use super::route::Route;
use super::state::AppState;
use super::{health, metrics, objects};
use crate::metrics::Metrics;
use crate::nix::CachePath;

/// The daemon as a service, for sockets and tests.
#[derive(Clone)]
pub struct App {
    router: Router,
    metrics: Arc<Metrics>,
}

impl App {
    /// The metrics in which requests are counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

impl Service<Request<Body>> for App {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <Router as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <Router as Service<Request<Body>>>::poll_ready(&mut self.router, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.router.call(request)
    }
}

/// Builds the service of a daemon with `state`.
pub fn app(state: AppState) -> App {
    let metrics = Arc::clone(state.cache.metrics());
    // The first layer classifies the request ([`Route::of`]) and the last one dispatches it, so the
    // router has one service for all names. axum boxes that service; the layers are within it.
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new(Arc::clone(&metrics)))
        .layer(AuthorizeLayer::new(state.policy.clone()))
        .service(Dispatch(Arc::new(state)));
    App { router: Router::new().fallback_service(service), metrics }
}

/// The innermost service.
#[derive(Clone)]
struct Dispatch(Arc<AppState>);

impl Service<Call> for Dispatch {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let state = Arc::clone(&self.0);
        async move {
            let kind = call.kind;
            let answer = dispatch(&state, call).await;
            Ok(answer.unwrap_or_else(|error| Answer::failed(error, kind)))
        }
        .boxed()
    }
}

/// Handles an authorized request. The large futures are boxed: otherwise every request would copy a
/// future of their size.
async fn dispatch(state: &AppState, call: Call) -> Result<Answer, HttpError> {
    let Call { route, request, body, .. } = call;
    match request.method {
        Method::GET | Method::HEAD => match route {
            Route::Object(path) => objects::read(&state.backend, &request, path).await,
            Route::Root => objects::read(&state.backend, &request, CachePath::CacheInfo).await,
            #[cfg(feature = "pages")]
            Route::Page(page) => {
                Box::pin(pages::answer(state, &request, page)).await.map(Answer::from)
            }
            Route::Metrics => Ok(Box::pin(metrics::answer(&state.cache)).await),
            Route::Health => Ok(Box::pin(health::answer(state)).await),
            Route::Unknown(error) => Err(HttpError::NoSuchName(error)),
        },
        Method::PUT => match route {
            Route::Object(path) => {
                Box::pin(objects::put(&state.backend, &request, &path, body)).await
            }
            Route::Unknown(error) => Err(HttpError::BadName(error)),
            _ => Err(HttpError::Method),
        },
        _ => Err(HttpError::Method),
    }
}
