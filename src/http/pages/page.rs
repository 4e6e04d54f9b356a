//! The pages and their URLs.

use http::Uri;
use http::header::HeaderMap;
use percent_encoding::percent_decode_str;

use super::accept;
use crate::nix::StorePathHash;

/// Path of the search and of the store path pages. No object has such a name.
pub(super) const BROWSE: &str = "/browse";

/// Maximum length of a query, in characters: the limit of file names.
const QUERY_LIMIT: usize = 255;

/// A page, by its URL.
#[derive(Debug)]
pub(in crate::http) enum Page {
    /// The front page.
    Front,
    /// The list of paths whose names contain `query`.
    List { query: String, number: usize },
    /// The page of the path with this name: a hash part or a store path.
    Path(String),
}

impl Page {
    /// Returns the page that a URL names, or `None` if it names no page.
    pub(in crate::http) fn of(uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        if uri.path() == "/" {
            return accept::prefers_html(headers).then_some(Self::Front);
        }
        let below = uri.path().strip_prefix(BROWSE)?;
        if !matches!(below.bytes().next(), None | Some(b'/')) {
            return None;
        }
        let name = below.trim_matches('/');
        if !name.is_empty() {
            return Some(Self::Path(name.to_owned()));
        }
        let field = |name| field(uri.query().unwrap_or_default(), name);
        let number = field("page").and_then(|number| number.parse().ok()).unwrap_or(1);
        let query = field("q").unwrap_or_default().chars().take(QUERY_LIMIT).collect();
        Some(Self::List { query, number })
    }
}

/// The URL of the page of a store path.
pub(super) fn url_of_path(hash: StorePathHash) -> String {
    format!("{BROWSE}/{hash}")
}

/// Decodes a form field in a query (`application/x-www-form-urlencoded`).
fn field(query: &str, name: &str) -> Option<String> {
    let values = query.split('&').filter_map(|field| field.split_once('='));
    let value = values.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
    Some(percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let query = "x=1&q=a+b%2Bc%26%C3%A9&q=2&page=3&empty=";
        assert_eq!(field(query, "q").as_deref(), Some("a b+c&é"));
        assert_eq!(field(query, "page").as_deref(), Some("3"));
        assert_eq!(field(query, "empty").as_deref(), Some(""));
        assert_eq!(field(query, "none"), None);
        assert_eq!(field("q=%ff%", "q").as_deref(), Some("\u{fffd}%"));
    }
}
