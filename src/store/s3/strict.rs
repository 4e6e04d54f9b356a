//! Accepts only responses that an object store sends.
//!
//! Between the daemon and the store there can be a proxy, a load balancer or a captive portal that
//! responds itself: with its own 404, an HTML page, or a redirect. Taken for responses of the
//! store, they would mean that an object is absent, has this content, or is stored. So every
//! response is checked before `object_store` gets it, and a response that no S3 server sends
//! becomes a 502, which is retried and then reported as a failure. Redirects are not followed,
//! because their target would receive the session token.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG};
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

/// Maximum length of the error in a 404, in bytes. Those of Amazon have about 300.
const ABSENCE_BODY_LIMIT: usize = 64 * 1024;

/// The error codes of S3 for absence (Amazon's API reference, "List of error codes").
/// [`super::bucket`] decides which of them means an absent object.
const ABSENT: [&str; 4] = ["NoSuchKey", "NoSuchBucket", "NoSuchUpload", "NoSuchVersion"];

/// Creates HTTP clients that check responses.
#[derive(Debug)]
pub(super) struct StrictConnector(pub reqwest::Client);

impl HttpConnector for StrictConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(StrictService(self.0.clone())))
    }
}

#[derive(Debug)]
struct StrictService(reqwest::Client);

#[async_trait]
impl HttpService for StrictService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let kind = RequestKind::of(&request);
        let answer = self.0.call(request).await?;
        let (status, headers) = (answer.status(), answer.headers());
        if status.as_u16() == 404 && kind != RequestKind::Head {
            return Ok(checked_absence(answer).await);
        }
        if status.is_success() && is_html(headers) {
            return Ok(bad_gateway(answer, "an HTML page"));
        }
        if status.is_success() && kind == RequestKind::PutObject && !headers.contains_key(ETAG) {
            return Ok(bad_gateway(answer, "a response to PUT without an ETag"));
        }
        Ok(answer)
    }
}

/// The kind of a request, as far as the check of its response depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    /// HEAD, whose response has no body with an error.
    Head,
    /// `PutObject` or `UploadPart`, whose responses have an entity tag.
    PutObject,
    Other,
}

impl RequestKind {
    fn of(request: &HttpRequest) -> Self {
        let copies = request.headers().contains_key("x-amz-copy-source");
        match *request.method() {
            Method::HEAD => Self::Head,
            Method::PUT if !copies => Self::PutObject,
            _ => Self::Other,
        }
    }
}

pub(super) fn is_html(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|text| text.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Accepts a 404 only if its body has an error code of S3 for absence.
async fn checked_absence(answer: HttpResponse) -> HttpResponse {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, ABSENCE_BODY_LIMIT).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let names_it = |code: &str| contains(&body, format!("<Code>{code}</Code>").as_bytes());
    let is_the_stores = ABSENT.iter().any(|code| names_it(code));
    let answer = HttpResponse::from_parts(parts, HttpResponseBody::from(body));
    if is_the_stores { answer } else { bad_gateway(answer, "a 404 without an S3 error") }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Replaces a response that no object store sends by a 502.
fn bad_gateway(answer: HttpResponse, what: &str) -> HttpResponse {
    let (mut parts, _) = answer.into_parts();
    let text =
        format!("something that is not an object store, maybe a proxy, responded with {what}");
    parts.status = 502.try_into().expect("it is a status");
    parts.headers.clear();
    HttpResponse::from_parts(parts, HttpResponseBody::from(Bytes::from(text)))
}
