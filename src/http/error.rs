//! The errors of requests, and the only table from errors to status codes.
//!
//! The body of an error response is one line of text, which Nix prints. `observe` logs the error,
//! which is a part of the [`Answer`](super::call::Answer).

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use thiserror::Error;

use crate::cache::{BodyError, PutError};
use crate::logging::printable;
#[cfg(feature = "upstream")]
use crate::mirror::{GetError, UpstreamError, UpstreamFailure};
use crate::nix::ObjectKind;
use crate::nix::cache_path::ParseCachePathError;
use crate::store::{RemoteFailure, StoreError};

/// The reason why a request failed.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// The object is absent.
    #[error("not found in this cache")]
    Absent,
    /// A read of a name that no object can have.
    #[error("not found in this cache: {0}")]
    NoSuchName(ParseCachePathError),
    /// An upload to a name that no object can have.
    #[error("{0}")]
    BadName(ParseCachePathError),
    /// A method other than GET, HEAD and PUT.
    #[error("only GET, HEAD and PUT are supported")]
    Method,
    /// A request without the credentials that it needs.
    #[error(
        "this request needs a user and a password; add them to the netrc file that nix.conf names"
    )]
    NoCredentials,
    /// Wrong credentials.
    #[error("wrong user or password; compare them with the settings of the cache")]
    WrongCredentials,
    /// The credentials of a user who may read but not upload.
    #[error("the user {user} may read but not upload; use the credentials of the write user")]
    NotAWriter {
        /// The user.
        user: String,
    },
    /// With no users configured, an upload that a proxy or a browser sent.
    #[error(
        "with no users configured, only clients on the cache's machine may upload; this request \
         has the header {header}, so it came through a proxy or from a web page; set \
         NIX_STORED_USER_WRITE and NIX_STORED_USER_WRITE_PASSFILE for the daemon"
    )]
    NotLocal {
        /// The name of the header.
        header: String,
    },
    /// Uploads are disabled.
    #[error("uploads are disabled; set NIX_STORED_USER_WRITE for the daemon")]
    UploadsOff,
    /// An upload without the client certificate that it needs.
    #[error("uploads need a client certificate; ask the administrator of the cache for one")]
    NoCertificate,
    /// A range outside the object.
    #[error("the requested range is outside the object, which has {size} bytes")]
    Range {
        /// The object's length in bytes.
        size: u64,
    },
    /// An upload with a `Content-Encoding` that cannot be decoded.
    #[error("unsupported Content-Encoding “{0}”; upload the object without it")]
    Encoding(String),
    /// The health check failed.
    #[error("the cache is unavailable: {0}")]
    Unhealthy(String),
    /// Too many pages are being rendered.
    #[cfg(feature = "pages")]
    #[error(transparent)]
    TooManyPages(#[from] crate::browse::TooManyPages),
    /// A bug. The message of the panic is on standard error.
    #[error("internal error: the handler of this request panicked")]
    Panicked,
    /// A read that failed.
    #[error(transparent)]
    Get(#[from] StoreError),
    /// The object is absent here, and an upstream that may have it failed.
    #[cfg(feature = "upstream")]
    #[error("not found in this cache, and an upstream failed: {0}")]
    Upstream(#[from] UpstreamError),
    /// An upload that was not accepted.
    #[error(transparent)]
    Put(#[from] PutError),
}

#[cfg(feature = "upstream")]
impl From<GetError> for HttpError {
    fn from(error: GetError) -> Self {
        match error {
            GetError::Store(error) => Self::Get(error),
            GetError::Upstream(error) => Self::Upstream(error),
        }
    }
}

/// Maximum length of the line in an error response, in bytes. Nix prints only bodies of less than
/// 1,024 bytes (`src/libstore/filetransfer.cc`).
pub(super) const ERROR_LINE_LIMIT: usize = 1000;

impl HttpError {
    /// Returns the status of the error. The table has no wildcard, so that a new error needs a
    /// decision here.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Absent | Self::NoSuchName(_) => StatusCode::NOT_FOUND,
            Self::BadName(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoCredentials | Self::WrongCredentials | Self::NotLocal { .. } => {
                StatusCode::UNAUTHORIZED
            }
            Self::NotAWriter { .. } | Self::UploadsOff | Self::NoCertificate => {
                StatusCode::FORBIDDEN
            }
            Self::Range { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Encoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unhealthy(_) => StatusCode::SERVICE_UNAVAILABLE,
            #[cfg(feature = "pages")]
            Self::TooManyPages(_) => StatusCode::SERVICE_UNAVAILABLE,
            // A read can fetch an object from an upstream, which needs space. 413 is only for
            // request bodies.
            Self::Get(StoreError::NoSpace { .. } | StoreError::Reserve { .. }) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            Self::Get(StoreError::Obstructed { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Get(error) | Self::Put(PutError::Store(error)) => match error {
                // Not 507, because Nix up to 2.33 waits for ever after it.
                StoreError::NoSpace { .. } | StoreError::Reserve { .. } => {
                    StatusCode::PAYLOAD_TOO_LARGE
                }
                StoreError::Busy { .. } | StoreError::Unusable(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                StoreError::Obstructed { .. } => StatusCode::CONFLICT,
                StoreError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
                StoreError::Remote { failure, .. } => match failure {
                    RemoteFailure::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                    RemoteFailure::Busy => StatusCode::SERVICE_UNAVAILABLE,
                    RemoteFailure::Denied | RemoteFailure::Failed => StatusCode::BAD_GATEWAY,
                },
            },
            #[cfg(feature = "upstream")]
            Self::Upstream(error) => match error.failure {
                UpstreamFailure::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
                UpstreamFailure::Connection(_)
                | UpstreamFailure::Status(_)
                | UpstreamFailure::Unauthorized(_)
                | UpstreamFailure::CircuitOpen(_)
                | UpstreamFailure::InvalidResponse(_) => StatusCode::BAD_GATEWAY,
            },
            Self::Put(PutError::Body(BodyError::Stalled(_))) => StatusCode::REQUEST_TIMEOUT,
            Self::Put(
                PutError::Body(BodyError::CutShort(_))
                | PutError::Length { .. }
                | PutError::NarInfo(_)
                | PutError::Encoding { .. },
            ) => StatusCode::BAD_REQUEST,
            Self::Put(PutError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Put(PutError::NoDecoder(_)) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Put(
                PutError::StoreDir { .. }
                | PutError::HashPart { .. }
                | PutError::FileHash { .. }
                | PutError::Unpack(_)
                | PutError::NarElsewhere(_)
                | PutError::NarMissing(_)
                | PutError::NarDamaged(_)
                | PutError::NarChanged(_)
                | PutError::Field { .. }
                | PutError::Signature { .. }
                | PutError::Reference(_),
            ) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Put(PutError::Read { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the line for the client. The causes of server errors are only logged. The error can
    /// quote untrusted text, so the line is escaped and shortened.
    fn line(&self) -> Bytes {
        let status = self.status();
        if matches!(self, Self::Absent) {
            return Bytes::from_static(b"not found in this cache\n");
        }
        #[cfg(feature = "pages")]
        if let Self::TooManyPages(error) = self {
            return format!("{error}\n").into();
        }
        if status.is_server_error() {
            let phrase = status.canonical_reason().unwrap_or("error");
            format!("{phrase}; the reason is in the log of the cache\n").into()
        } else {
            let mut line = printable(&self.to_string(), ERROR_LINE_LIMIT - 1).into_owned();
            line.push('\n');
            line.into()
        }
    }

    /// Returns the response to a request for an object of this kind. Nix resumes the download of a
    /// NAR only if the previous response, even an error, had `Accept-Ranges`
    /// (`src/libstore/filetransfer.cc`).
    pub(super) fn response(&self, kind: Option<ObjectKind>) -> Response<Body> {
        let mut response = Response::new(Body::from(self.line()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
        set(header::CONTENT_TYPE, "text/plain; charset=utf-8");
        set(header::CACHE_CONTROL, "no-store");
        if kind == Some(ObjectKind::Nar) {
            set(header::ACCEPT_RANGES, "bytes");
        }
        match self {
            Self::Method => {
                set(header::ALLOW, "GET, HEAD, PUT");
            }
            Self::NoCredentials | Self::WrongCredentials | Self::NotLocal { .. } => {
                set(header::WWW_AUTHENTICATE, "Basic realm=\"nix-stored\", charset=\"UTF-8\"");
            }
            Self::Put(PutError::Body(_)) => {
                // The rest of the body would be read as the next request.
                set(header::CONNECTION, "close");
            }
            Self::Get(error) | Self::Put(PutError::Store(error)) if error.is_temporary() => {
                set(header::RETRY_AFTER, "1");
            }
            #[cfg(feature = "pages")]
            Self::TooManyPages(_) => {
                set(header::RETRY_AFTER, "5");
            }
            Self::Range { size } => {
                let value = HeaderValue::try_from(format!("bytes */{size}"))
                    .expect("digits make a header value");
                headers.insert(header::CONTENT_RANGE, value);
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::STATUSES;

    #[test]
    fn every_status_is_counted_by_its_number() {
        let errors = [
            HttpError::Absent,
            HttpError::Method,
            HttpError::NoCredentials,
            HttpError::UploadsOff,
            HttpError::Range { size: 0 },
            HttpError::Encoding(String::new()),
            HttpError::Panicked,
            HttpError::Unhealthy(String::new()),
            HttpError::Put(PutError::Store(StoreError::Obstructed {
                key: String::new(),
                obstacle: "",
            })),
            HttpError::Get(StoreError::Reserve { free: 0, needed: 0, reserve: 0 }),
            HttpError::Put(PutError::TooLarge { limit: 0 }),
            HttpError::Put(PutError::NarMissing(String::new())),
            HttpError::Put(PutError::Body(BodyError::Stalled(Default::default()))),
        ];
        for error in errors {
            assert!(STATUSES.contains(&error.status().as_u16()), "{error}");
        }
    }
}
