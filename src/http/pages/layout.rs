//! The common layout of all pages.

use std::time::SystemTime;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::page::{BROWSE, url_of_path};
use super::words::{Foreign, ago, count, size};
use crate::browse::{Index, Overview};
use crate::nix::StorePathHash;

pub(super) const STYLE: &str = include_str!("style.css");
pub(super) const SCRIPT: &str = include_str!("copy.js");

/// The logo: paths that lead to one place.
const SIGN: &str = "M12 2v20M12 12 3.3 7M12 12l8.7-5M12 12l-8.7 5M12 12l8.7 5";

/// The same logo as a favicon; without it, browsers request `/favicon.ico`.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' \
    stroke='%232f7f9e' stroke-width='2.6' stroke-linecap='round'%3E%3Cpath d='M12 2v20M12 12 3.3 7M12 12l8.7-5M12 \
    12l-8.7 5M12 12l8.7 5'/%3E%3C/svg%3E";

/// A whole page.
pub(super) struct Layout<'a> {
    pub title: &'a str,
    /// Text in the search field.
    pub query: &'a str,
    /// Whether the browser reloads the page after three seconds.
    pub reload: bool,
    /// Age of the index, for the footer.
    pub as_of: Option<Markup>,
}

impl Layout<'_> {
    pub(super) fn page(&self, main: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    title { (Foreign(self.title)) }
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    // Crawlers would read the NAR of every path.
                    meta name="robots" content="noindex, nofollow";
                    @if self.reload { meta http-equiv="refresh" content="3"; }
                    link rel="icon" href=(ICON);
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#main" { "Skip to the content" }
                    header {
                        a.brand href="/" {
                            svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2.2"
                                stroke-linecap="round" aria-hidden="true" { path d=(SIGN) {} }
                            "nix-stored"
                        }
                        search {
                            form action=(BROWSE) {
                                input type="search" name="q" value=(Foreign(self.query)) placeholder="Find a store path"
                                    aria-label="Name, hash part or store path" autocomplete="off" spellcheck="false";
                                button { "Search" }
                            }
                        }
                    }
                    main #main { (main) }
                    footer {
                        span { "nix-stored " (env!("CARGO_PKG_VERSION")) }
                        a href="/nix-cache-info" { "nix-cache-info" }
                        a href=(BROWSE) { "All paths" }
                        @if let Some(as_of) = &self.as_of { span { (as_of) } }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        }
    }
}

/// The 404 page; `why` is a clause without a full stop.
pub(super) fn nothing(why: &str) -> Markup {
    let main = html! {
        h1 { "Not found" }
        p { (why) "." }
        p { a href=(BROWSE) { "All paths, newest first" } }
    };
    Layout { title: "Not found", query: "", reload: false, as_of: None }.page(&main)
}

/// The text in place of the index, until it has been built.
pub(super) fn not_yet(overview: &Overview) -> Markup {
    html! {
        p role="status" {
            @match overview.found {
                Some(found) => {
                    "The index is being built for the first time since start: "
                    (count(found as usize, "object")) " so far. This page reloads automatically."
                }
                None => { "The index could not be built; the log of the daemon has the reason." }
            }
        }
    }
}

/// Age of the index.
pub(super) fn as_of(overview: &Overview, now: SystemTime) -> Option<Markup> {
    let index = overview.index.as_ref()?;
    Some(html! {
        "Index built " (ago(index.built_at(), now))
        @if overview.failed { "; the last update failed, the log of the daemon has the reason" }
    })
}

/// A text to copy.
pub(super) fn paste(text: &str) -> Markup {
    html! { div.paste { pre { code { (text) } } } }
}

/// A link to the page of a path.
pub(super) fn link(hash: StorePathHash, name: &str) -> Markup {
    html! { a href=(url_of_path(hash)) { (name) } }
}

/// A table of paths.
pub(super) fn rows(index: &Index, places: &[u32], now: SystemTime) -> Markup {
    html! {
        div.scroll {
            table.rows {
                thead {
                    tr {
                        th scope="col" { "Name" }
                        th.number scope="col" { "Size" }
                        th scope="col" { "Uploaded" }
                        th scope="col" { "Last used" }
                    }
                }
                tbody {
                    @for row in places.iter().map(|&place| index.row(place)) {
                        tr {
                            td.name {
                                (link(row.hash, row.name))
                                @if row.mirrored { " " span.badge title="Mirrored from an upstream cache" { "mirrored" } }
                            }
                            td.number { (size(row.size)) }
                            td.when data-label="uploaded" { (ago(row.uploaded, now)) }
                            td.when data-label="used" { (ago(row.used, now)) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_index_the_page_shows_its_progress_or_its_failure() {
        let page = |found, failed| not_yet(&Overview { index: None, found, failed }).into_string();
        assert!(page(Some(1234), false).contains("1,234 objects so far"));
        assert!(page(None, true).contains("the log of the daemon has the reason"));
    }
}
