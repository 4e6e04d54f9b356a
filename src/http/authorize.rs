//! Who may do what, as a tower layer.
//!
//! The access a request needs is a function of its method alone. Nothing is read of a body before
//! this has decided, so a refused upload is refused instead of its `100 Continue`.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::Either;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Method, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::error::HttpError;
use super::health;
use super::observe::User;
use crate::config::{Access, Credentials, Requirement};

/// Wraps a service so that only who may reaches it.
#[derive(Debug, Clone)]
pub struct AuthorizeLayer {
    access: Arc<Access>,
}

impl AuthorizeLayer {
    /// A layer that lets through what `access` allows.
    pub fn new(access: Access) -> Self {
        Self { access: Arc::new(access) }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorize { inner, access: Arc::clone(&self.access) }
    }
}

/// Answers 401 or 403 where a client may not, and asks the inner service otherwise.
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    access: Arc<Access>,
}

impl<S, B> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match decide(&self.access, &request) {
            Ok(None) => Either::Left(self.inner.call(request)),
            Ok(Some(user)) => {
                user.tell(request.extensions_mut());
                Either::Left(self.inner.call(request))
            }
            Err(_) if health::is_asked(&request) => Either::Left(self.inner.call(request)),
            Err(error) => Either::Right(ready(Ok(error.into_response(request.uri().path())))),
        }
    }
}

/// The user, where one was asked for.
fn decide<B>(access: &Access, request: &Request<B>) -> Result<Option<User>, HttpError> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let requirement = if reads { &access.read } else { &access.write };
    let allowed = match requirement {
        Requirement::Anyone => return Ok(None),
        Requirement::Nobody => return Err(HttpError::UploadsOff),
        Requirement::User(allowed) => allowed,
    };
    let presented = request.headers().get(AUTHORIZATION).ok_or(HttpError::NoCredentials)?;
    let presented = Presented::parse(presented).ok_or(HttpError::WrongCredentials)?;
    if let Some(credentials) = presented.find(allowed) {
        return Ok(Some(User::new(credentials.user())));
    }
    // Who may read and not write is told so; everybody else is told nothing.
    match &access.read {
        Requirement::User(readers) if !reads => match presented.find(readers) {
            Some(reader) => Err(HttpError::NotAWriter { user: reader.user().to_owned() }),
            None => Err(HttpError::WrongCredentials),
        },
        _ => Err(HttpError::WrongCredentials),
    }
}

/// What a client sent in `Authorization`.
enum Presented {
    /// What Nix sends.
    Basic { user: String, password: String },
    /// The password alone, for tools that can send nothing else.
    Bearer(String),
}

impl Presented {
    fn parse(value: &HeaderValue) -> Option<Self> {
        let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer(rest.trim().to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some(Self::Basic { user: user.to_owned(), password: password.to_owned() })
    }

    /// The credentials that these are. Every one is compared, so the time says nothing about which.
    fn find<'a>(&self, among: &'a [Credentials]) -> Option<&'a Credentials> {
        among.iter().fold(None, |found, credentials| {
            let matches = match self {
                Self::Basic { user, password } => credentials.matches(user, password),
                Self::Bearer(password) => credentials.matches_bearer(password),
            };
            if matches { Some(credentials) } else { found }
        })
    }
}
