//! Access control, as a tower layer.
//!
//! The access that a request needs depends only on its method. The decision is made before the body
//! is read, so a client with `Expect: 100-continue` is refused before it sends the body.
//!
//! If no users are configured, clients on this machine may upload. The address of the peer is not
//! enough for that: a reverse proxy on this machine forwards requests of remote clients, and a
//! browser sends requests of web pages. Both are recognized by the headers that they send.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::Either;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::call::{Answer, Call, User};
use super::conn_info::ConnInfo;
use super::error::HttpError;
use super::route::{Route, is_read};
use crate::config::{Access, Credentials, Requirement};

/// The access rules. They can be replaced while requests are served; clones share them.
#[derive(Debug, Clone)]
pub struct AccessPolicy(Arc<ArcSwap<Access>>);

impl From<Access> for AccessPolicy {
    fn from(access: Access) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(access)))
    }
}

impl AccessPolicy {
    /// Replaces the rules for new requests. Requests in progress continue.
    pub fn replace(&self, access: Access) {
        self.0.store(Arc::new(access));
    }

    /// Returns the current rules.
    pub fn access(&self) -> Arc<Access> {
        self.0.load_full()
    }
}

/// Wraps a service so that only authorized requests reach it.
#[derive(Debug, Clone)]
pub(super) struct AuthorizeLayer {
    policy: AccessPolicy,
}

impl AuthorizeLayer {
    /// Creates a layer that enforces `policy`.
    pub(super) fn new(policy: AccessPolicy) -> Self {
        Self { policy }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorize { inner, policy: self.policy.clone() }
    }
}

/// Responds with 401 or 403 to unauthorized requests, and passes the others to the inner service.
#[derive(Debug, Clone)]
pub(super) struct Authorize<S> {
    inner: S,
    policy: AccessPolicy,
}

impl<S> Service<Call> for Authorize<S>
where
    S: Service<Call, Response = Answer>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Either<AuthorizedFuture<S::Future>, Ready<Result<Answer, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let user = match decide(&self.policy.0.load(), &call.request) {
            Ok(user) => user,
            // The health check needs no credentials.
            Err(_) if matches!(call.route, Route::Health) => None,
            Err(error) => return Either::Right(ready(Ok(Answer::failed(error, call.kind)))),
        };
        Either::Left(AuthorizedFuture { inner: self.inner.call(call), user })
    }
}

pin_project! {
    /// The response to an authorized request.
    pub struct AuthorizedFuture<F> {
        #[pin]
        inner: F,
        user: Option<User>,
    }
}

impl<F: Future<Output = Result<Answer, E>>, E> Future for AuthorizedFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(Answer { user: this.user.take(), ..answer }))
    }
}

/// Returns the user, or `None` if the request needs no credentials.
fn decide(access: &Access, request: &Parts) -> Result<Option<User>, HttpError> {
    let reads = is_read(&request.method);
    let requirement = if reads { &access.read } else { &access.write };
    let allowed = match requirement {
        Requirement::Anyone => return Ok(None),
        Requirement::Local => {
            return match proxy_or_browser_header(&request.headers) {
                None => Ok(None),
                Some(header) => Err(HttpError::NotLocal { header: header.to_owned() }),
            };
        }
        Requirement::Nobody => Err(HttpError::UploadsOff),
        Requirement::Certificate => Err(HttpError::NoCertificate),
        Requirement::User(allowed) => Ok(allowed),
    };
    if let Some(holder) = certificate_holder(request) {
        return Ok(Some(User::new(holder)));
    }
    let allowed = allowed?;
    let presented = request.headers.get(AUTHORIZATION).ok_or(HttpError::NoCredentials)?;
    let presented = PresentedCredentials::parse(presented).ok_or(HttpError::WrongCredentials)?;
    if let Some(credentials) = presented.find(allowed) {
        return Ok(Some(User::new(credentials.user())));
    }
    // Only a user who may read gets the message that the user may not upload.
    match &access.read {
        Requirement::User(readers) if !reads => match presented.find(readers) {
            Some(reader) => Err(HttpError::NotAWriter { user: reader.user().to_owned() }),
            None => Err(HttpError::WrongCredentials),
        },
        _ => Err(HttpError::WrongCredentials),
    }
}

/// Returns the name of a header that only proxies and browsers send: the origin of a forwarded
/// request, or the web page that sent it. A proxy that sends no such header cannot be distinguished
/// from a client.
fn proxy_or_browser_header(headers: &HeaderMap) -> Option<&str> {
    let is_one = |name: &&str| {
        matches!(*name, "forwarded" | "via" | "x-real-ip" | "origin")
            || ["x-forwarded-", "sec-fetch-"].iter().any(|start| name.starts_with(start))
            // Headers of content delivery networks: `CF-Connecting-IP`, `True-Client-IP`.
            || ["client-ip", "connecting-ip"].iter().any(|end| name.ends_with(end))
    };
    headers.keys().map(HeaderName::as_str).find(is_one)
}

/// Returns the subject of the client certificate. Its holder is the write user, whatever other
/// credentials are sent.
fn certificate_holder(request: &Parts) -> Option<&str> {
    request.extensions.get::<ConnInfo>()?.certificate.as_deref()
}

/// The credentials in the `Authorization` header.
enum PresentedCredentials {
    /// A user and a password, as Nix sends them.
    Basic { user: String, password: String },
    /// Only a password, for tools that cannot send a user.
    Bearer(String),
}

impl PresentedCredentials {
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

    /// Returns the matching credentials. All of them are compared, so that the time does not reveal
    /// which one matches.
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
