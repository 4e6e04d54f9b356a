//! The errors of upstreams.

use std::time::Duration;

use thiserror::Error;

use crate::ingest::PutError;
use crate::store::StoreError;

/// A failure of an upstream.
#[derive(Debug, Clone, Error)]
pub enum UpstreamFailure {
    /// The connection failed.
    #[error("connection failed: {0}")]
    Connection(String),
    /// The upstream did not respond in time.
    #[error("no response within {0:?}")]
    TimedOut(Duration),
    /// An unexpected status.
    #[error("unexpected status {0}")]
    Status(u16),
    /// 401: the credentials are missing or wrong.
    #[error("status 401; {0}")]
    Unauthorized(&'static str),
    /// The circuit is open after failures; no request was sent.
    #[error("circuit open after failures; next request in {0:?}")]
    CircuitOpen(Duration),
    /// The response is invalid.
    #[error("invalid response: {0}")]
    InvalidResponse(String),
}

/// The failure of a request that no upstream could satisfy.
#[derive(Debug, Clone, Error)]
#[error("{upstream}: {failure}")]
pub struct UpstreamError {
    /// The URL of the upstream, without credentials.
    pub upstream: String,
    /// The failure.
    pub failure: UpstreamFailure,
}

/// An upstream that cannot be set up.
#[derive(Debug, Error)]
#[error("cannot use the upstream {upstream}")]
pub struct SetUpError {
    pub(super) upstream: String,
    pub(super) source: Box<dyn std::error::Error + Send + Sync>,
}

/// A failed read. Absence is not an error.
#[derive(Debug, Error)]
pub enum GetError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object is not in this cache, and an upstream that may have it failed.
    #[error("not found in this cache, and an upstream failed: {0}")]
    Upstream(#[from] UpstreamError),
}

pub(super) fn invalid_response(upstream: &str, what: &str) -> GetError {
    let failure = UpstreamFailure::InvalidResponse(what.to_owned());
    UpstreamError { upstream: upstream.to_owned(), failure }.into()
}

/// Converts the error of receiving or storing an object of an upstream.
pub(super) fn get_error(error: PutError, upstream: &str) -> GetError {
    match error {
        PutError::Store(error) => error.into(),
        PutError::Body(error) => {
            let failure = UpstreamFailure::Connection(error.to_string());
            UpstreamError { upstream: upstream.to_owned(), failure }.into()
        }
        error => invalid_response(upstream, &error.to_string()),
    }
}
