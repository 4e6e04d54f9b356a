//! GET, HEAD and PUT of the objects of the cache.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};

use super::body::{Again, OnDemand};
use super::conditional::{self, Selection};
use super::error::HttpError;
use super::origin::Origin;
#[cfg(feature = "pages")]
use super::pages;
use super::router::Site;
use super::{body, health, metrics};
use crate::cache::Cache;
use crate::nix::{CachePath, Compression};
use crate::store::{Content, Metadata, Object, Stored};

type Answer = Result<Response<Body>, HttpError>;

/// Answers any request.
pub async fn answer(State(site): State<Arc<Site>>, request: Request<Body>) -> Response<Body> {
    let (request, body) = request.into_parts();
    let answer = match request.method {
        #[cfg(feature = "pages")]
        Method::GET | Method::HEAD if pages::are_asked_for(&request) => {
            pages::answer(&site.cache, site.gate.access(), &request).await
        }
        Method::GET => get(&site, &request).await,
        Method::HEAD => head(&site, &request).await,
        Method::PUT => put(&site.cache, &request, body).await,
        _ => Err(HttpError::Method),
    };
    answer.unwrap_or_else(|error| error.into_response(request.uri.path()))
}

async fn get(site: &Site, request: &Parts) -> Answer {
    let path = match readable(request) {
        Ok(path) => path,
        Err(absent) => return page(site, request).await.unwrap_or(Err(absent)),
    };
    let path = site.cache.canonical(path).await?;
    if let Some(link) = site.cache.link(&path).await? {
        return Ok(redirect(link));
    }
    let Object { metadata, content } = site.cache.get(&path).await?.ok_or(HttpError::Absent)?;
    let (mut response, range) = head_of_answer(&path, &metadata, &request.headers)?;
    if response.status() != StatusCode::NOT_MODIFIED {
        let (size, etag) = (metadata.size, metadata.etag);
        let again = Again { cache: Arc::clone(&site.cache), path, etag };
        let origin = request.extensions.get::<Origin>();
        if !matches!(content, Content::Bytes(_)) {
            response.extensions_mut().insert(OnDemand);
        }
        *response.body_mut() = body::outgoing(content, size, range, origin, again);
    }
    Ok(response)
}

/// Sends the client elsewhere. Nix and curl follow, and ask here again for the rest of a download
/// that breaks off.
fn redirect(link: String) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    let link = HeaderValue::try_from(link).expect("a signed URL is a header value");
    headers.insert(header::LOCATION, link);
    // It is good for some minutes only.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

/// The headers of GET, and nothing is read for it.
async fn head(site: &Site, request: &Parts) -> Answer {
    let path = match readable(request) {
        Ok(path) => path,
        Err(absent) => return head_of_page(page(site, request).await.unwrap_or(Err(absent))?),
    };
    let path = site.cache.canonical(path).await?;
    let metadata = site.cache.head(&path).await?.ok_or(HttpError::Absent)?;
    let (mut response, range) = head_of_answer(&path, &metadata, &request.headers)?;
    if response.status() != StatusCode::NOT_MODIFIED {
        let length = range.end - range.start;
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

/// What the daemon says of itself, under names that no object can have: nothing is looked up for it
/// before a name has turned out to be none.
async fn page(site: &Site, request: &Parts) -> Option<Answer> {
    match request.uri.path() {
        metrics::PATH => Some(Ok(metrics::answer(&site.cache).await)),
        health::PATH => Some(Ok(health::answer(site).await)),
        _ => None,
    }
}

fn head_of_page(page: Response<Body>) -> Answer {
    let length = http_body::Body::size_hint(page.body()).exact();
    let mut response = page.map(|_| Body::empty());
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

async fn put(cache: &Cache, request: &Parts, body: Body) -> Answer {
    let path = CachePath::from_request(request.uri.path(), request.uri.query())
        .map_err(HttpError::BadName)?;
    let encoding = encoding(&request.headers)?;
    let declared = http_body::Body::size_hint(&body).exact();
    let accepted = cache.put(&path, encoding, declared, body::incoming(body)).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = match accepted.stored {
        Stored::Created => StatusCode::CREATED,
        Stored::Replaced => StatusCode::OK,
    };
    // `observe` tells it, with whom it is from.
    response.extensions_mut().insert(Arc::new(accepted));
    Ok(response)
}

/// What is to be undone before storing. Nix names encodings as it names compressions, `none`
/// included (`narinfo-compression` and the like, Nix's `src/libstore/http-binary-cache-store.cc`).
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

fn readable(request: &Parts) -> Result<CachePath, HttpError> {
    let path = request.uri.path();
    CachePath::from_request(path, request.uri.query()).or_else(|error| match path {
        // What is there for people to look at is for programs to read.
        "/" => Ok(CachePath::CacheInfo),
        _ => Err(HttpError::NoSuchName(error)),
    })
}

/// As many headers as an answer has, so that their map is allocated once.
const HEADERS: usize = 6;

/// The answer without its body, and the range that the body shall have.
fn head_of_answer(
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
    headers.reserve(HEADERS);
    let fixed = HeaderValue::from_static;
    headers.insert(header::CONTENT_TYPE, fixed(path.content_type()));
    headers.insert(header::CACHE_CONTROL, fixed(path.cache_control()));
    headers.insert(header::ACCEPT_RANGES, fixed("bytes"));
    headers.insert(header::ETAG, conditional::etag(metadata));
    let date = httpdate::fmt_http_date(metadata.modified);
    let date = HeaderValue::try_from(date).expect("an HTTP date is a header value");
    headers.insert(header::LAST_MODIFIED, date);
    if *path == CachePath::CacheInfo {
        // At `/` it is a page for who wants that.
        headers.insert(header::VARY, fixed("accept"));
    }
    Ok((response, range))
}
