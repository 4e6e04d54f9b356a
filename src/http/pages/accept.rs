//! Content negotiation: browsers get pages, other clients get the text that Nix reads.

use http::HeaderMap;
use http::header::ACCEPT;

/// Whether a client accepts HTML with at least the weight of plain text (RFC 9110, section 12.5.1).
/// Browsers name `text/html`; Nix, curl and proxies accept `*/*`, which selects the text.
pub(super) fn prefers_html(headers: &HeaderMap) -> bool {
    let mut html: Option<f32> = None;
    let mut plain: Option<f32> = None;
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
        match kind.as_str() {
            "text/html" | "application/xhtml+xml" => html = Some(html.unwrap_or(0.0).max(weight)),
            "text/plain" | "text/x-nix-cache-info" => {
                plain = Some(plain.unwrap_or(0.0).max(weight));
            }
            _ => {}
        }
    }
    html.is_some_and(|html| html > 0.0 && html >= plain.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_pages_and_other_clients_get_text() {
        for (accept, expected) in [
            // Firefox, Chromium, lynx, w3m
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
                true,
            ),
            ("text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01", true),
            ("TEXT/HTML", true),
            ("text/html;level=1;q=0.5, text/plain;q=0.5", true),
            // Nix, curl and wget
            ("*/*", false),
            ("", false),
            ("text/*", false),
            ("application/json", false),
            ("text/plain, text/html;q=0.9", false),
            ("text/html;q=0", false),
            ("text/html;q=much", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(prefers_html(&headers), expected, "{accept}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }
}
