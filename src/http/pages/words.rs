//! Human-readable numbers and times, and escaping of untrusted text.

use std::fmt;
use std::time::{Duration, SystemTime};

use indicatif::{BinaryBytes, HumanCount};
use maud::{Markup, Render, html};

use crate::logging::printable;

/// A human-readable number of bytes, such as `1.21 GiB`.
pub(super) fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// `1 path`, `1,234 paths`.
pub(super) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", HumanCount(number as u64))
}

/// A ratio in per cent. `0 %` is printed only for 0, and `100 %` only if the part is not less than the
/// whole.
pub(super) fn per_cent(part: u64, whole: u64) -> String {
    match part as f64 / whole as f64 * 100.0 {
        _ if part == 0 || whole == 0 => "0 %".to_owned(),
        share if share < 0.1 => "< 0.1 %".to_owned(),
        share if share >= 99.95 && part < whole => "99.9 %".to_owned(),
        share if part < whole => format!("{share:.1} %"),
        share => format!("{share:.0} %"),
    }
}

/// The time since `then`, such as `2 hours ago`, with the exact time as a tooltip.
pub(super) fn ago(then: SystemTime, now: SystemTime) -> Markup {
    let exact = humantime::format_rfc3339_seconds(then).to_string();
    let ago = match now.duration_since(then) {
        Ok(since) if since.as_secs() >= 60 => format!("{} ago", about(since)),
        // The clock may have been set back.
        _ => "just now".to_owned(),
    };
    html! { time datetime=(exact) title=(exact) { (ago) } }
}

/// A duration in its largest unit, rounded down, such as `2 hours`.
pub(super) fn about(length: Duration) -> String {
    let units = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    let seconds = length.as_secs();
    let unit = units.iter().find(|(unit, _)| seconds >= *unit);
    let (unit, name) = unit.copied().unwrap_or((1, "second"));
    count((seconds / unit) as usize, name)
}

/// The date of a time in UTC, such as `2026-11-21`.
pub(super) fn day(time: SystemTime) -> String {
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate(10);
    text
}

/// Maximum length of untrusted text, in bytes.
const FOREIGN_TEXT_LIMIT: usize = 8 * 1024;

/// Untrusted text. Invisible characters and bidirectional controls are printed as escapes.
pub(super) struct Foreign<'a>(pub &'a str);

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(self.0, FOREIGN_TEXT_LIMIT))
    }
}

impl Render for Foreign<'_> {
    fn render_to(&self, buffer: &mut String) {
        self.to_string().render_to(buffer);
    }
}

/// A string literal of the Nix language.
pub(super) fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_never_rounded_to_0_or_100_per_cent() {
        assert_eq!(per_cent(0, 0), "0 %");
        assert_eq!(per_cent(0, 5), "0 %");
        assert_eq!(per_cent(1, 1_000_000), "< 0.1 %");
        assert_eq!(per_cent(1, 3), "33.3 %");
        assert_eq!(per_cent(999_999, 1_000_000), "99.9 %");
        assert_eq!(per_cent(5, 5), "100 %");
    }

    #[test]
    fn times_are_shown_in_their_largest_unit() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let html = |seconds| ago(now - Duration::from_secs(seconds), now).into_string();
        assert!(html(59).contains(">just now<"));
        assert!(html(60).contains(">1 minute ago<"));
        assert!(html(7300).contains(">2 hours ago<"));
        assert!(html(40 * 86_400).contains("title=\"2001-07-31T01:46:40Z\">1 month ago<"));
        assert!(ago(now + Duration::from_secs(9), now).into_string().contains("just now"));
        assert_eq!(day(now), "2001-09-09");
    }

    #[test]
    fn untrusted_text_is_escaped_and_invisible_characters_are_spelled_out() {
        let html = |text| html! { (Foreign(text)) }.into_string();
        assert_eq!(html("héllo wörld"), "héllo wörld");
        assert_eq!(html("<b>&\""), "&lt;b&gt;&amp;&quot;");
        assert_eq!(html("a\u{202e}b\0\u{200b}\r"), "a\\u{202e}b\\u{0}\\u{200b}\\u{d}");
    }

    #[test]
    fn special_characters_in_a_nix_string_are_escaped() {
        assert_eq!(nix_string("cache-1:AA=="), "\"cache-1:AA==\"");
        assert_eq!(nix_string("a\"${b}\\"), "\"a\\\"\\${b}\\\\\"");
    }
}
