//! GET, HEAD and PUT of the objects of the cache.

use std::sync::Arc;

use axum::body::Body;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};

use super::backend::Backend;
use super::body::{self, ObjectSource, OnDemandBody};
use super::call::Answer;
use super::conditional::{self, Selection};
use super::conn_info::ConnInfo;
use super::error::HttpError;
use crate::nix::{CachePath, Compression};
use crate::store::{Content, Metadata, Object, Stored};

/// Handles GET and HEAD of an object.
pub(super) async fn read(
    backend: &Arc<Backend>,
    request: &Parts,
    path: CachePath,
) -> Result<Answer, HttpError> {
    let response = match request.method {
        Method::HEAD => head(backend, request, &path).await?,
        _ => get(backend, request, path).await?,
    };
    Ok(response.into())
}

async fn get(
    backend: &Arc<Backend>,
    request: &Parts,
    path: CachePath,
) -> Result<Response<Body>, HttpError> {
    if let Some(url) = backend.presigned_url(&path).await? {
        return Ok(redirect(url));
    }
    let Object { metadata, content } = backend.get(&path).await?.ok_or(HttpError::Absent)?;
    let (mut response, range) = response_head(&path, &metadata, &request.headers)?;
    if response.status() != StatusCode::NOT_MODIFIED {
        let (size, etag) = (metadata.size, metadata.etag);
        let source = ObjectSource { backend: Arc::clone(backend), path, etag };
        let conn_info = request.extensions.get::<ConnInfo>();
        if !matches!(content, Content::Bytes(_)) {
            response.extensions_mut().insert(OnDemandBody);
        }
        *response.body_mut() = body::outgoing(content, size, range, conn_info, source);
    }
    Ok(response)
}

/// Redirects the client to a presigned URL. Nix and curl follow redirects, and resume an
/// interrupted download at the original URL.
fn redirect(link: String) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    let link = HeaderValue::try_from(link).expect("a signed URL is a header value");
    headers.insert(header::LOCATION, link);
    // The URL expires after some minutes.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

/// Returns the headers of GET, without reading the object.
async fn head(
    backend: &Backend,
    request: &Parts,
    path: &CachePath,
) -> Result<Response<Body>, HttpError> {
    let metadata = backend.head(path).await?.ok_or(HttpError::Absent)?;
    let (mut response, range) = response_head(path, &metadata, &request.headers)?;
    if response.status() != StatusCode::NOT_MODIFIED {
        let length = range.end - range.start;
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

/// Handles PUT of an object.
pub(super) async fn put(
    backend: &Backend,
    request: &Parts,
    path: &CachePath,
    body: Body,
) -> Result<Answer, HttpError> {
    let encoding = encoding(&request.headers)?;
    let declared = http_body::Body::size_hint(&body).exact();
    let accepted = backend.put(path, encoding, declared, body::incoming(body)).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = match accepted.stored {
        Stored::Created => StatusCode::CREATED,
        Stored::Replaced => StatusCode::OK,
    };
    Ok(Answer { accepted: Some(Box::new(accepted)), ..response.into() })
}

/// Returns the compression that must be decoded before the object is stored. Nix sends the names of
/// its compressions as `Content-Encoding`, also `none` (settings like `narinfo-compression`,
/// `src/libstore/http-binary-cache-store.cc`).
fn encoding(headers: &HeaderMap) -> Result<Compression, HttpError> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(Compression::None);
    };
    match value.as_bytes() {
        b"identity" => Ok(Compression::None),
        b"x-gzip" => Ok(Compression::Gzip),
        name => {
            let name = String::from_utf8_lossy(name);
            name.parse().map_err(HttpError::Encoding)
        }
    }
}

/// The number of headers of a response, so that their map is allocated once.
const HEADER_COUNT: usize = 6;

/// Returns the response without its body, and the range of the object for the body.
fn response_head(
    path: &CachePath,
    metadata: &Metadata,
    request: &HeaderMap,
) -> Result<(Response<Body>, std::ops::Range<u64>), HttpError> {
    let mut response = Response::new(Body::empty());
    let range = match conditional::select(request, metadata) {
        Selection::Whole => 0..metadata.size,
        Selection::Part(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let value = format!("bytes {}-{}/{}", range.start, range.end - 1, metadata.size);
            let value = HeaderValue::try_from(value).expect("digits make a header value");
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            range
        }
        Selection::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            0..0
        }
        Selection::Unsatisfiable => return Err(HttpError::Range { size: metadata.size }),
    };
    let headers = response.headers_mut();
    headers.reserve(HEADER_COUNT);
    let fixed = HeaderValue::from_static;
    headers.insert(header::CONTENT_TYPE, fixed(path.content_type()));
    headers.insert(header::CACHE_CONTROL, fixed(path.cache_control()));
    headers.insert(header::ACCEPT_RANGES, fixed("bytes"));
    headers.insert(header::ETAG, conditional::etag(metadata));
    let date = httpdate::fmt_http_date(metadata.modified);
    let date = HeaderValue::try_from(date).expect("an HTTP date is a header value");
    headers.insert(header::LAST_MODIFIED, date);
    if *path == CachePath::CacheInfo {
        // `/` is a page for clients that prefer HTML.
        headers.insert(header::VARY, fixed("accept"));
    }
    Ok((response, range))
}
