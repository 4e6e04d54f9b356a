//! Search results, or all paths.

use std::time::SystemTime;

use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::layout::{Layout, as_of, not_yet, rows};
use super::page::BROWSE;
use super::visit::Visit;
use super::words::{Foreign, count};
use crate::browse::{Index, Overview};

/// Number of paths on a page.
const PATHS_PER_PAGE: usize = 50;

pub(super) fn page(visit: &Visit, overview: &Overview, query: &str, number: usize) -> Markup {
    let query = query.trim();
    let heading = match query {
        "" => "All paths".to_owned(),
        query => format!("Paths matching “{}”", Foreign(query)),
    };
    let main = html! {
        h1 { (heading) }
        @match &overview.index {
            Some(index) => { (found(index, query, number, visit.now)) }
            None => { (not_yet(overview)) }
        }
    };
    let as_of = as_of(overview, visit.now);
    let reload = overview.index.is_none() && overview.found.is_some();
    Layout { title: &heading, query, reload, as_of }.page(&main)
}

/// One page of the results.
fn found(index: &Index, query: &str, number: usize, now: SystemTime) -> Markup {
    let found = index.search(query);
    let last = found.len().div_ceil(PATHS_PER_PAGE).max(1);
    let number = number.clamp(1, last);
    let begin = (number - 1) * PATHS_PER_PAGE;
    let shown = &found[begin..found.len().min(begin + PATHS_PER_PAGE)];
    html! {
        p.soft {
            @if found.is_empty() && !query.is_empty() {
                "No path has all these words in its name."
            } @else if found.is_empty() {
                "The cache is empty."
            } @else {
                (count(found.len(), "path"))
                @if query.is_empty() { ", newest first" }
                @if last > 1 { ", page " (number) " of " (last) }
            }
        }
        @if !shown.is_empty() { (rows(index, shown, now)) }
        @if last > 1 {
            nav.pages aria-label="Pages" {
                @if number > 1 { a rel="prev" href=(address(query, number - 1)) { "Previous" } }
                @if number < last { a rel="next" href=(address(query, number + 1)) { "Next" } }
            }
        }
    }
}

fn address(query: &str, number: usize) -> String {
    format!("{BROWSE}?q={}&page={number}", utf8_percent_encode(query, NON_ALPHANUMERIC))
}
