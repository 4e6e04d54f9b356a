//! A selected range is within the object, not empty, and the requested range.
//!
//! The first line of the input is the size of the object; each other line is a header.

#![no_main]

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use nix_stored::http::conditional::{ByteRange, Selection, etag, parse_range, select};
use nix_stored::store::Metadata;

fn headers(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // The server accepts no more headers.
    for line in lines.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), value) {
            headers.append(name, value);
        }
    }
    headers
}

/// The request with this header, in place of others with the same name.
fn with(request: &HeaderMap, name: HeaderName, value: &str) -> HeaderMap {
    let mut request = request.clone();
    request.insert(name, HeaderValue::from_str(value).expect("the value has only visible characters"));
    request
}

fuzz_target!(|data: &[u8]| {
    let (size, lines) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b""[..]),
    };
    let Some(size) = str::from_utf8(size).ok().and_then(|size| size.parse().ok()) else { return };
    let metadata = Metadata {
        size,
        modified: SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 5),
        used: SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 5),
        etag: "\"2a-3e8-f4240.5\"".into(),
    };
    let request = headers(lines);
    let range =
        request.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(parse_range);

    match select(&request, &metadata) {
        Selection::Whole => {}
        Selection::Part(part) => {
            assert!(part.start < part.end && part.end <= size, "{part:?} of {size}");
            let length = part.end - part.start;
            match range.expect("the request has a range") {
                ByteRange::From(first) => assert_eq!(part, first..size),
                ByteRange::Within(first, last) => {
                    assert_eq!(part.start, first);
                    assert_eq!(length - 1, (last - first).min(size - 1 - first));
                }
                ByteRange::Last(count) => assert_eq!((part.end, length), (size, count.min(size))),
            }
            let plain = format!("bytes={}-{}", part.start, part.end - 1);
            let again = select(&with(&request, header::RANGE, &plain), &metadata);
            assert_eq!(again, Selection::Part(part), "{plain}");
        }
        Selection::NotModified => {
            let asked = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
            assert!(asked.iter().any(|name| request.contains_key(name)));
        }
        Selection::Unsatisfiable => match range.expect("the request has a range") {
            ByteRange::From(first) | ByteRange::Within(first, _) => assert!(first >= size),
            ByteRange::Last(count) => assert!(count == 0 || size == 0),
        },
    }

    let tag = etag(&metadata);
    let tag = tag.to_str().expect("an entity tag has only visible characters");
    let known = with(&request, header::IF_NONE_MATCH, tag);
    assert_eq!(select(&known, &metadata), Selection::NotModified);
    let other = with(&request, header::IF_RANGE, "\"another\"");
    assert!(matches!(select(&other, &metadata), Selection::Whole | Selection::NotModified));
    let mut same = with(&request, header::IF_RANGE, tag);
    let expected = select(&same, &metadata);
    same.remove(header::IF_RANGE);
    assert_eq!(select(&same, &metadata), expected, "the tag of this version changes nothing");
});
