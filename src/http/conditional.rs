//! Conditional requests and ranges (RFC 9110, sections 13 and 14), as a pure function of the
//! headers and the metadata.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{self, HeaderValue};

use crate::store::Metadata;

/// The part of an object that is sent, with its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The whole object: 200.
    Whole,
    /// A range: 206.
    Part(Range<u64>),
    /// Nothing, because the client has the object: 304.
    NotModified,
    /// Nothing, because the range is outside the object: 416.
    Unsatisfiable,
}

/// Returns the strong entity tag of an object.
pub fn etag(metadata: &Metadata) -> HeaderValue {
    HeaderValue::from_maybe_shared(metadata.etag.clone())
        .expect("an entity tag has only visible characters")
}

/// Decides what is sent. As the RFC allows, a `Range` is ignored if it is invalid, has several
/// ranges, or has an `If-Range` that does not match.
pub fn select(request: &HeaderMap, metadata: &Metadata) -> Selection {
    if is_not_modified(request, metadata) {
        return Selection::NotModified;
    }
    let range = text(request, header::RANGE).and_then(parse_range);
    match range {
        Some(range) if if_range_holds(request, metadata) => range.of(metadata.size),
        _ => Selection::Whole,
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn is_not_modified(request: &HeaderMap, metadata: &Metadata) -> bool {
    // `If-None-Match` takes precedence, whatever `If-Modified-Since` says (section 13.2.2).
    if request.contains_key(header::IF_NONE_MATCH) {
        return request
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .any(|value| value.to_str().is_ok_and(|tags| lists(tags, &metadata.etag)));
    }
    text(request, header::IF_MODIFIED_SINCE)
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .is_some_and(|date| whole_seconds(metadata.modified) <= date)
}

/// Whether a list of entity tags contains `etag`, by the weak comparison (section 8.8.3.2).
fn lists(tags: &str, etag: &[u8]) -> bool {
    tags.split(',')
        .map(str::trim)
        .map(|tag| tag.strip_prefix("W/").unwrap_or(tag))
        .any(|tag| tag == "*" || tag.as_bytes() == etag)
}

/// Whether `If-Range` is absent, or has the same strong entity tag or the same date (section
/// 13.1.5).
fn if_range_holds(request: &HeaderMap, metadata: &Metadata) -> bool {
    match text(request, header::IF_RANGE) {
        None => !request.contains_key(header::IF_RANGE),
        Some(tag) if tag.starts_with('"') => tag.as_bytes() == metadata.etag,
        Some(date) => httpdate::parse_http_date(date)
            .is_ok_and(|date| date == whole_seconds(metadata.modified)),
    }
}

/// Truncates a time to seconds, as in an HTTP date.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// A range in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// `first-`
    From(u64),
    /// `first-last`
    Within(u64, u64),
    /// `-count`
    Last(u64),
}

/// Parses a `Range` with a single range of bytes.
pub fn parse_range(value: &str) -> Option<ByteRange> {
    let (unit, set) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => Some(ByteRange::From(first)),
        (Some(first), Some(last)) if first <= last => Some(ByteRange::Within(first, last)),
        (None, Some(count)) if first.is_empty() => Some(ByteRange::Last(count)),
        _ => None,
    }
}

/// Parses a number. Unlike `str::parse`, it rejects signs. A number above `u64::MAX` is taken for
/// `u64::MAX`, because no object is that long.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

impl ByteRange {
    fn of(self, size: u64) -> Selection {
        let range = match self {
            Self::From(first) => first..size,
            Self::Within(first, last) => first..last.saturating_add(1).min(size),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        if range.is_empty() { Selection::Unsatisfiable } else { Selection::Part(range) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metadata() -> Metadata {
        Metadata {
            size: 1000,
            modified: SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 5),
            used: SystemTime::UNIX_EPOCH,
            etag: "\"abc\"".into(),
        }
    }

    fn with(headers: &[(header::HeaderName, &str)]) -> Selection {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        select(&headers, &metadata())
    }

    #[test]
    fn each_range_header_selects_its_part_of_the_object() {
        for (range, expected) in [
            ("bytes=0-", Selection::Part(0..1000)),
            ("bytes=0-0", Selection::Part(0..1)),
            ("bytes=10-19", Selection::Part(10..20)),
            ("bytes=990-5000", Selection::Part(990..1000)),
            ("bytes=-1", Selection::Part(999..1000)),
            ("bytes=-5000", Selection::Part(0..1000)),
            ("Bytes=1-", Selection::Part(1..1000)),
            ("bytes=0-99999999999999999999999", Selection::Part(0..1000)),
            ("bytes=1000-", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=5-4", Selection::Whole),
            ("bytes=0-1,5-6", Selection::Whole),
            ("bytes=+1-", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("lines=1-", Selection::Whole),
            ("0-1", Selection::Whole),
        ] {
            assert_eq!(with(&[(header::RANGE, range)]), expected, "{range}");
        }
    }

    #[test]
    fn a_matching_validator_selects_not_modified() {
        let none_match = |tags| with(&[(header::IF_NONE_MATCH, tags)]);
        assert_eq!(none_match("\"abc\""), Selection::NotModified);
        assert_eq!(none_match("\"x\", W/\"abc\""), Selection::NotModified);
        assert_eq!(none_match("*"), Selection::NotModified);
        assert_eq!(none_match("\"x\""), Selection::Whole);
        assert_eq!(none_match("abc"), Selection::Whole);

        let since = |date| with(&[(header::IF_MODIFIED_SINCE, date)]);
        assert_eq!(since("Mon, 12 Jan 1970 13:46:40 GMT"), Selection::NotModified);
        assert_eq!(since("Mon, 12 Jan 1970 13:46:39 GMT"), Selection::Whole);
        assert_eq!(since("yesterday"), Selection::Whole);
        assert_eq!(
            with(&[
                (header::IF_NONE_MATCH, "\"x\""),
                (header::IF_MODIFIED_SINCE, "Mon, 12 Jan 1970 13:46:40 GMT"),
            ]),
            Selection::Whole
        );
    }

    #[test]
    fn a_range_is_ignored_if_if_range_does_not_match() {
        let if_range = |value| with(&[(header::RANGE, "bytes=1-"), (header::IF_RANGE, value)]);
        assert_eq!(if_range("\"abc\""), Selection::Part(1..1000));
        assert_eq!(if_range("\"x\""), Selection::Whole);
        assert_eq!(if_range("W/\"abc\""), Selection::Whole);
        assert_eq!(if_range("Mon, 12 Jan 1970 13:46:40 GMT"), Selection::Part(1..1000));
        assert_eq!(if_range("Mon, 12 Jan 1970 13:46:41 GMT"), Selection::Whole);
    }

    proptest! {
        #[test]
        fn a_selected_range_lies_within_the_object(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size: u64) {
            if let Some(range) = parse_range(&range)
                && let Selection::Part(part) = range.of(size)
            {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }

        #[test]
        fn no_range_header_makes_the_parser_panic(text in ".{0,40}") {
            let _ = parse_range(&text);
        }
    }
}
