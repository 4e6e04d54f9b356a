//! Charts: uploads and uses by day, and a fill level. They stretch to the width of the page, so they
//! contain no text.

use std::time::Duration;

use maud::{Markup, html};

use super::words::{count, day};
use crate::browse::{DailyCounts, HISTORY_DAYS};

const HEIGHT: f64 = 100.0;

/// Minimum height of a bar, so that it is visible.
const MIN_BAR_HEIGHT: f64 = 1.5;

/// Number of paths uploaded and last used, by day.
pub(super) fn use_by_day(days: &DailyCounts) -> Markup {
    let most = days.uploaded.iter().chain(&days.used).copied().max().unwrap_or_default().max(1);
    let height = |number: u32| match number {
        0 => 0.0,
        _ => (f64::from(number) / f64::from(most) * HEIGHT).max(MIN_BAR_HEIGHT),
    };
    let date = |at: usize| day(days.first + Duration::from_secs(at as u64 * 86_400));
    let bar = |class: &str, at: usize, inset: f64, number: u32| {
        let (x, width, height) = (at as f64 + inset, 1.0 - 2.0 * inset, height(number));
        html! {
            @if number > 0 {
                rect class=(class) x=(x) y=(HEIGHT - height) width=(width) height=(height) {}
            }
        }
    };
    let sum = |numbers: &[u32]| numbers.iter().map(|number| *number as usize).sum();
    let label = format!(
        "Last {HISTORY_DAYS} days: {} uploaded, {} last used, at most {} per day.",
        count(sum(&days.uploaded), "path"),
        count(sum(&days.used), "path"),
        count(most as usize, "path"),
    );
    let key = |class| html! { svg viewBox="0 0 1 1" aria-hidden="true" { rect class=(class) width="1" height="1" {} } };
    html! {
        figure {
            figcaption {
                span.key { (key("uploaded")) "Paths uploaded" }
                span.key { (key("used")) "Paths last used" }
                span { "at most " (count(most as usize, "path")) " per day" }
            }
            svg.chart viewBox={ "0 0 " (HISTORY_DAYS) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
                @for at in 0..HISTORY_DAYS {
                    g {
                        title {
                            (date(at)) ": " (days.uploaded[at]) " uploaded, " (days.used[at]) " last used"
                        }
                        rect.hit x=(at) y="0" width="1" height=(HEIGHT) {}
                        (bar("used", at, 0.08, days.used[at]))
                        (bar("uploaded", at, 0.3, days.uploaded[at]))
                    }
                }
            }
            div.axis aria-hidden="true" {
                span { (date(0)) } span { (date(HISTORY_DAYS / 2)) } span { "today" }
            }
        }
    }
}

/// A bar that is filled to `part` of `whole`.
pub(super) fn fill(part: u64, whole: u64) -> Markup {
    let share = (part as f64 / whole.max(1) as f64).clamp(0.0, 1.0) * 100.0;
    html! {
        svg.fill viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true" {
            rect width="100" height="1" {}
            rect width=(format!("{share:.1}")) height="1" {}
        }
    }
}
