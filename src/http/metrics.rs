//! `/metrics`, and the labels of requests.

use std::sync::Arc;

use axum::body::Body;
use http::header::{self, HeaderValue};
use http::{Method, Response};

use super::call::Answer;
use super::error::HttpError;
use crate::cache::{BodyError, Cache, PutError};
use crate::metrics::{self, CONTENT_TYPE};
use crate::store::StoreError;

pub(super) async fn answer(cache: &Arc<Cache>) -> Answer {
    let cache = Arc::clone(cache);
    // Reading `/proc` and the free space may block.
    let rendered =
        tokio::task::spawn_blocking(move || cache.metrics().render(cache.store().free_space()))
            .await;
    let Ok(text) = rendered else {
        return Answer::failed(HttpError::Panicked, None);
    };
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.into()
}

/// The label of a method.
pub(super) fn method(method: &Method) -> metrics::Method {
    match *method {
        Method::GET => metrics::Method::Get,
        Method::HEAD => metrics::Method::Head,
        Method::PUT => metrics::Method::Put,
        _ => metrics::Method::Other,
    }
}

/// The label of the reason why an upload was refused.
pub(super) fn reason(error: &HttpError) -> &'static str {
    match error {
        HttpError::NoCredentials | HttpError::WrongCredentials => "credentials",
        HttpError::NotAWriter { .. }
        | HttpError::NotLocal { .. }
        | HttpError::UploadsOff
        | HttpError::NoCertificate => "not-allowed",
        HttpError::BadName(_) => "name",
        HttpError::Encoding(_) => "encoding",
        HttpError::Put(error) => match error {
            PutError::Body(BodyError::CutShort(_)) => "cut-short",
            PutError::Body(BodyError::Stalled(_)) => "stalled",
            PutError::Length { .. } => "length",
            PutError::TooLarge { .. } => "too-large",
            PutError::StoreDir { .. } => "store-dir",
            PutError::NarInfo(_) | PutError::HashPart { .. } | PutError::Field { .. } => "narinfo",
            PutError::NarElsewhere(_) | PutError::NarMissing(_) => "nar-missing",
            PutError::FileHash { .. } => "file-hash",
            PutError::Encoding { .. } | PutError::NoDecoder(_) => "encoding",
            PutError::Unpack(_) => "unpack",
            PutError::NarDamaged(_) | PutError::NarChanged(_) | PutError::Read { .. } => {
                "nar-damaged"
            }
            PutError::Signature { .. } => "signature",
            PutError::Reference(_) => "reference",
            PutError::Store(StoreError::NoSpace { .. } | StoreError::Reserve { .. }) => "no-space",
            PutError::Store(StoreError::Busy { .. }) => "busy",
            PutError::Store(
                StoreError::Io { .. }
                | StoreError::Remote { .. }
                | StoreError::Unusable(_)
                | StoreError::Obstructed { .. },
            ) => "store",
        },
        HttpError::Panicked => "bug",
        // Uploads do not cause these errors.
        HttpError::Absent
        | HttpError::NoSuchName(_)
        | HttpError::Method
        | HttpError::Range { .. }
        | HttpError::Unhealthy(_)
        | HttpError::Get(_) => "other",
        #[cfg(feature = "upstream")]
        HttpError::Upstream(_) => "other",
        #[cfg(feature = "pages")]
        HttpError::TooManyPages(_) => "other",
    }
}
