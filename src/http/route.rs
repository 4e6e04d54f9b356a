//! The classification of requests: every request is classified once, here.

use http::request::Parts;
use http::{Method, Uri};

use crate::nix::cache_path::ParseCachePathError;
use crate::nix::{CachePath, ObjectKind};

#[cfg(feature = "pages")]
use super::pages::Page;

/// The path of the metrics.
const METRICS_PATH: &str = "/metrics";

/// The path of the health check.
const HEALTH_PATH: &str = "/health";

/// The resource that a request names.
#[derive(Debug)]
pub(super) enum Route {
    /// An object of the cache.
    Object(CachePath),
    /// `/`, for clients that do not prefer HTML. The response is `nix-cache-info`.
    Root,
    /// A web page.
    #[cfg(feature = "pages")]
    Page(Page),
    /// The metrics.
    Metrics,
    /// The health check.
    Health,
    /// No resource has this name.
    Unknown(ParseCachePathError),
}

impl Route {
    /// Classifies a request. Other methods than GET and HEAD reach only objects.
    pub(super) fn of(request: &Parts) -> Self {
        let (uri, reads) = (&request.uri, is_read(&request.method));
        #[cfg(feature = "pages")]
        if reads && let Some(page) = Page::of(uri, &request.headers) {
            return Self::Page(page);
        }
        match CachePath::from_request(uri.path(), uri.query()) {
            Ok(path) => Self::Object(path),
            Err(error) if reads => match uri.path() {
                "/" => Self::Root,
                METRICS_PATH => Self::Metrics,
                HEALTH_PATH => Self::Health,
                _ => Self::Unknown(error),
            },
            Err(error) => Self::Unknown(error),
        }
    }

    /// Returns the kind of object under which the request is counted, also if no object can have
    /// the name.
    pub(super) fn kind(&self, uri: &Uri) -> Option<ObjectKind> {
        match self {
            Self::Object(path) => Some(path.kind()),
            Self::Unknown(_) => ObjectKind::of_request(uri.path()),
            Self::Root | Self::Metrics | Self::Health => None,
            #[cfg(feature = "pages")]
            Self::Page(_) => None,
        }
    }
}

/// Whether a method only reads: GET and HEAD.
pub(super) fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::header::ACCEPT;

    use super::*;

    fn route(method: &str, uri: &str, accept: &str) -> String {
        let request = Request::builder().method(method).uri(uri).header(ACCEPT, accept);
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let route = format!("{:?}", Route::of(&parts));
        route.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
    }

    #[test]
    fn each_request_has_one_route() {
        const NAR: &str = "/nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar";
        for (method, uri, expected) in [
            ("GET", "/nix-cache-info", "Object"),
            ("HEAD", NAR, "Object"),
            ("PUT", NAR, "Object"),
            ("GET", "/", "Root"),
            ("GET", "/metrics", "Metrics"),
            ("HEAD", "/health", "Health"),
            ("GET", "/x", "Unknown"),
            // These names can only be read.
            ("PUT", "/", "Unknown"),
            ("PUT", "/health", "Unknown"),
            ("POST", "/metrics", "Unknown"),
        ] {
            assert_eq!(route(method, uri, "*/*"), expected, "{method} {uri}");
        }
    }

    #[cfg(feature = "pages")]
    #[test]
    fn only_clients_that_prefer_html_get_pages() {
        for (method, uri, accept, expected) in [
            ("GET", "/", "text/html", "Page"),
            ("HEAD", "/", "text/html", "Page"),
            ("PUT", "/", "text/html", "Unknown"),
            ("GET", "/browse", "*/*", "Page"),
            ("GET", "/browse/x", "*/*", "Page"),
            ("GET", "/browser", "*/*", "Unknown"),
            ("PUT", "/browse", "*/*", "Unknown"),
        ] {
            assert_eq!(route(method, uri, accept), expected, "{method} {uri} {accept}");
        }
    }
}
