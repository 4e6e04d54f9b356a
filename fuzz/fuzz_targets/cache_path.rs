//! A request names one object in the directories of a cache, or is invalid.
//!
//! The input is the target of a request: a path, and a query after the first `?`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nix_stored::nix::CachePath;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Characters to encode: all that a path requires, and more, but not the slash.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/');

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8().expect("the text is UTF-8 after decoding").into_owned()
}

/// The decoded path with single slashes.
fn plain(path: &str) -> String {
    let path = decoded(path);
    path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let Ok(name) = CachePath::from_request(path, query) else { return };

    let key = name.key();
    assert_eq!(key, name.to_string());
    for part in key.split('/') {
        assert!(!matches!(part, "" | "." | ".." | ".nix-stored"), "{key:?}");
        assert!(!part.contains('\0'), "{key:?}");
        assert!(part.len() <= 255, "{key:?}");
    }
    assert_eq!(key.parse().as_ref(), Ok(&name));

    let mut spelling = plain(path);
    match (&name, query) {
        (CachePath::Log(_), Some(query)) => spelling = format!("{spelling}?{}", decoded(query)),
        (CachePath::DebugInfo(_), _) if !spelling.ends_with(".debug") => spelling += ".debug",
        _ => {}
    }
    assert_eq!(spelling, key, "a name has one spelling");

    for set in [NON_ALPHANUMERIC, PART] {
        let encoded = utf8_percent_encode(&key, set).to_string();
        assert_eq!(CachePath::from_request(&encoded, None).as_ref(), Ok(&name), "{encoded}");
        let absolute = format!("/{encoded}");
        assert_eq!(CachePath::from_request(&absolute, None).as_ref(), Ok(&name), "{absolute}");
    }
    let doubled = path.replace('/', "//");
    assert_eq!(CachePath::from_request(&doubled, query).as_ref(), Ok(&name), "{doubled}");
    if !matches!(name, CachePath::Log(_)) {
        assert_eq!(CachePath::from_request(path, None).as_ref(), Ok(&name), "a query matters");
    }
});
