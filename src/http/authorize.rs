//! Who may do what, as a tower layer.
//!
//! The access a request needs is a function of its method alone. Nothing is read of a body before
//! this has decided, so a refused upload is refused instead of its `100 Continue`.
//!
//! Where no user is configured, clients on this machine may upload. The socket says that the other
//! end of the connection is here; a reverse proxy and a web page in a browser are here, too, and
//! their clients and authors are not. Both say so in headers.

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

/// What is asked of clients, which can be changed while requests are served. A clone is the same
/// gate.
#[derive(Debug, Clone)]
pub struct AccessPolicy(Arc<ArcSwap<Access>>);

impl From<Access> for AccessPolicy {
    fn from(access: Access) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(access)))
    }
}

impl AccessPolicy {
    /// Asks this of every request from now on. Those that were let in go on.
    pub fn replace(&self, access: Access) {
        self.0.store(Arc::new(access));
    }

    /// What is asked of clients now.
    pub fn access(&self) -> Arc<Access> {
        self.0.load_full()
    }
}

/// Wraps a service so that only who may reaches it.
#[derive(Debug, Clone)]
pub(super) struct AuthorizeLayer {
    policy: AccessPolicy,
}

impl AuthorizeLayer {
    /// A layer that lets through what `gate` allows.
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

/// Answers 401 or 403 where a client may not, and asks the inner service otherwise.
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
            // It needs no credentials.
            Err(_) if matches!(call.route, Route::Health) => None,
            Err(error) => return Either::Right(ready(Ok(Answer::failed(error, call.kind)))),
        };
        Either::Left(AuthorizedFuture { inner: self.inner.call(call), user })
    }
}

pin_project! {
    /// The future of a request that was allowed.
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

/// The user, if credentials were needed.
fn decide(access: &Access, request: &Parts) -> Result<Option<User>, HttpError> {
    let reads = is_read(&request.method);
    let requirement = if reads { &access.read } else { &access.write };
    let allowed = match requirement {
        Requirement::Anyone => return Ok(None),
        Requirement::Local => {
            return match header_of_another_machine(&request.headers) {
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

/// A header that only proxies and browsers send, if there is one: where a request came from that was
/// forwarded, and which page has made it. A proxy that sends none of them cannot be told from a
/// client.
fn header_of_another_machine(headers: &HeaderMap) -> Option<&str> {
    let is_one = |name: &&str| {
        matches!(*name, "forwarded" | "via" | "x-real-ip" | "origin")
            || ["x-forwarded-", "sec-fetch-"].iter().any(|start| name.starts_with(start))
            // Those of networks that stand before a server: `CF-Connecting-IP`, `True-Client-IP`.
            || ["client-ip", "connecting-ip"].iter().any(|end| name.ends_with(end))
    };
    headers.keys().map(HeaderName::as_str).find(is_one)
}

/// The subject of the client certificate of the connection: the write user, whatever else is sent.
fn certificate_holder(request: &Parts) -> Option<&str> {
    request.extensions.get::<ConnInfo>()?.certificate.as_deref()
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
