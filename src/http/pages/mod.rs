//! Web pages: configuration to copy, statistics, search, and a page for each store path.
//!
//! Each page is one document, rendered for each request. It contains its style sheet and its script, and
//! the content security policy allows only these, by hash. So a page causes no other requests, and text
//! from uploaders could not run even if it were not escaped. `maud` escapes all text.
//!
//! `page` maps URLs to pages. `visit` has the context of a request: the index of the cache, and the
//! `address` that the browser used. `front`, `list` and `path` render the pages, in the common
//! `layout`, with `chart`s, and with numbers, times and untrusted text formatted by `words`.
//! `accept` decides whether a client gets a page at `/`.

mod accept;
mod address;
mod chart;
mod front;
mod layout;
mod list;
mod page;
mod path;
mod visit;
mod words;

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use maud::Markup;
use sha2::{Digest, Sha256};

use super::backend::upstream_rows;
use super::error::HttpError;
use super::state::AppState;
use crate::browse::{Browser, DetailsError};
use crate::nix::{StoreDir, StorePathHash};
use address::Address;
pub(super) use page::Page;
use visit::Visit;

/// Responds to a page request.
pub(super) async fn answer(
    state: &AppState,
    request: &Parts,
    page: Page,
) -> Result<Response<Body>, HttpError> {
    let visit = Visit {
        browser: Arc::clone(&state.browser),
        upstreams: upstream_rows(&state.backend),
        access: state.policy.access(),
        address: Address::of(request),
        now: SystemTime::now(),
    };
    let browser = &state.browser;
    let store_dir = &browser.about().info.store_dir;
    match page {
        Page::Front => {
            let overview = browser.overview().await;
            rendered(browser, move || front::page(&visit, &overview)).await
        }
        Page::List { query, number } => match hash_in(&query, store_dir) {
            // A search for a hash part has at most one result.
            Some(hash) => Ok(see_other(&page::url_of_path(hash))),
            None => {
                let overview = browser.overview().await;
                rendered(browser, move || list::page(&visit, &overview, &query, number)).await
            }
        },
        Page::Path(name) => match hash_in(&name, store_dir) {
            Some(hash) => path_answer(visit, hash).await,
            None => Ok(response(StatusCode::NOT_FOUND, layout::nothing("There is no such page"))),
        },
    }
}

async fn path_answer(visit: Visit, hash: StorePathHash) -> Result<Response<Body>, HttpError> {
    let browser = Arc::clone(&visit.browser);
    let Some(details) = browser.details(hash).await? else {
        let why =
            "This path is not in the cache; it may have been removed after a long time without use";
        let page = layout::nothing(why);
        return Ok(response(StatusCode::NOT_FOUND, page));
    };
    let (files, overview) = tokio::join!(browser.files_of(&details.info), browser.overview());
    rendered(&browser, move || path::page(&visit, &details, files, &overview)).await
}

/// The hash part of a text: a hash part alone, a store path or its base name.
fn hash_in(text: &str, store_dir: &StoreDir) -> Option<StorePathHash> {
    let text = text.trim();
    let name =
        text.strip_prefix(store_dir.as_str()).map_or(text, |rest| rest.trim_start_matches('/'));
    let (hash, rest) = name.split_at_checked(StorePathHash::LEN)?;
    let ends = rest.is_empty() || rest.starts_with(['-', '.', '/']);
    hash.parse().ok().filter(|_| ends)
}

/// Renders a page on a separate thread: searching and rendering thousands of names takes milliseconds,
/// and would delay other requests.
async fn rendered(
    browser: &Browser,
    page: impl FnOnce() -> Markup + Send + 'static,
) -> Result<Response<Body>, HttpError> {
    Ok(response(StatusCode::OK, browser.render(page).await?))
}

fn response(status: StatusCode, page: Markup) -> Response<Body> {
    let mut response = Response::new(Body::from(page.into_string()));
    *response.status_mut() = status;
    response.headers_mut().extend(HEADERS.clone());
    response
}

impl From<DetailsError> for HttpError {
    fn from(error: DetailsError) -> Self {
        match error {
            DetailsError::TooMany(error) => error.into(),
            DetailsError::Store(error) => error.into(),
        }
    }
}

fn see_other(address: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let address = HeaderValue::try_from(address).expect("an address of ours is a header value");
    response.headers_mut().insert(header::LOCATION, address);
    response
}

/// The headers of every page.
static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash(layout::STYLE),
        hash(layout::SCRIPT),
    );
    let policy = HeaderValue::try_from(policy).expect("base 64 makes a header value");
    let fixed = HeaderValue::from_static;
    HeaderMap::from_iter([
        (header::CONTENT_TYPE, fixed("text/html; charset=utf-8")),
        // A page contains the address from the request, and may need a password.
        (header::CACHE_CONTROL, fixed("private, no-cache")),
        (header::VARY, fixed("accept")),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
    ])
});

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "8ha1dhmx807czjczmwy078s4r9s254il";

    #[test]
    fn the_hash_part_is_found_in_every_form_of_a_store_path() {
        let found = |text: &str| hash_in(text, &StoreDir::default()).map(|hash| hash.to_string());
        for text in ["", "-hello-2.12", ".narinfo", "-hello-2.12/bin/hello"] {
            for before in ["", " ", "/nix/store/"] {
                assert_eq!(
                    found(&format!("{before}{HASH}{text}")).as_deref(),
                    Some(HASH),
                    "{before}{text}"
                );
            }
        }
        for text in [
            "hello",
            "",
            &HASH[1..],
            &format!("{HASH}x"),
            &format!("/gnu/store/{HASH}-x"),
            &"é".repeat(40),
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
