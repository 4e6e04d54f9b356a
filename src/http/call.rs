//! The request and the response that the layers pass to each other.

use std::sync::Arc;

use axum::body::Body;
use http::request::Parts;
use http::{Request, Response};

use super::error::HttpError;
use super::route::Route;
use crate::cache::UploadReceipt;
use crate::nix::ObjectKind;

/// A request that has been classified.
pub(super) struct Call {
    pub(super) route: Route,
    /// The kind of object that the request is for.
    pub(super) kind: Option<ObjectKind>,
    pub(super) request: Parts,
    pub(super) body: Body,
}

impl From<Request<Body>> for Call {
    fn from(request: Request<Body>) -> Self {
        let (request, body) = request.into_parts();
        let route = Route::of(&request);
        let kind = route.kind(&request.uri);
        Self { route, kind, request, body }
    }
}

/// The result of a request: the response, and the data for metrics and log. It moves through all
/// layers, so its rare parts are boxed.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// The reason why the request failed. `None` for a successful request and for an absent object.
    pub(super) error: Option<Box<HttpError>>,
    /// The object that was uploaded.
    pub(super) accepted: Option<Box<UploadReceipt>>,
    /// The user whose credentials were checked.
    pub(super) user: Option<User>,
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self { response, error: None, accepted: None, user: None }
    }
}

impl Answer {
    /// Creates the answer to a failed request for an object of this kind.
    pub(super) fn failed(error: HttpError, kind: Option<ObjectKind>) -> Self {
        let response = error.response(kind);
        let error = (!matches!(error, HttpError::Absent)).then(|| Box::new(error));
        Self { error, ..response.into() }
    }
}

/// The name of a user.
#[derive(Debug, Clone)]
pub(super) struct User(pub(super) Arc<str>);

impl User {
    pub(super) fn new(name: &str) -> Self {
        Self(name.into())
    }
}
