//! Finds the objects that a narinfo names, even if the narinfo is invalid.
//!
//! [`NarInfo::parse`](super::NarInfo::parse) refuses narinfos that some versions of Nix accept and others
//! do not. But a narinfo that is already in the cache is served anyway, so objects that some version of
//! Nix would fetch because of it must not be removed. Therefore [`LenientNarInfo`] reads every line that
//! any Nix from 2.3 on may parse as `StorePath`, `URL`, `References` or `Deriver`. In case of doubt it
//! returns an object too many.

use percent_encoding::percent_decode;

use super::cache_path::NarName;
use super::{StorePath, StorePathHash};

/// The objects that a narinfo names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LenientNarInfo {
    /// The last valid `StorePath`; its store directory is not checked.
    pub store_path: Option<StorePath>,
    /// The NARs that a `URL` may mean, in the order of the text. Nix fetches the last one.
    pub nars: Vec<NarName>,
    /// Whether there is a `URL`, including one that names no NAR of this cache.
    pub has_url: bool,
    /// The hash parts in `References` and in each `StorePath`.
    pub references: Vec<StorePathHash>,
    /// The last valid `Deriver`.
    pub deriver: Option<StorePath>,
}

impl LenientNarInfo {
    /// Reads `text`; ignores everything that is not recognized.
    pub fn read(text: &[u8]) -> Self {
        let mut named = Self::default();
        for (key, value) in as_lines(text).chain(NixFields(text)) {
            match key {
                b"StorePath" => {
                    named.store_path = store_path(value).or(named.store_path.take());
                    named.add_references(value);
                }
                b"URL" => {
                    named.has_url |= !value.trim_ascii().is_empty();
                    for nar in nars_in_url(value) {
                        // The NAR that Nix fetches must stay the last one.
                        named.nars.retain(|known| *known != nar);
                        named.nars.push(nar);
                    }
                }
                b"References" => named.add_references(value),
                b"Deriver" => named.deriver = store_path(value).or(named.deriver.take()),
                _ => {}
            }
        }
        named.references.sort_unstable();
        named.references.dedup();
        named
    }

    /// Whether the text names no object: it is not a narinfo, or was cut off before its `URL`.
    pub fn is_empty(&self) -> bool {
        !self.has_url && self.references.is_empty()
    }

    fn add_references(&mut self, value: &[u8]) {
        let separated = |byte: &u8| byte.is_ascii_whitespace() || *byte == b',';
        self.references.extend(value.split(separated).filter_map(hash_part));
    }
}

/// Iterates over `Key: value` lines. If nothing follows the colon, the value is the next line: Nix skips
/// one character after the colon without checking it, even a line feed (Nix's
/// `src/libstore/nar-info.cc`).
fn as_lines(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut lines = text.split(|byte| *byte == b'\n').peekable();
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                continue;
            };
            let value = match &line[colon + 1..] {
                [] => lines.peek().copied().unwrap_or_default(),
                value => value,
            };
            return Some((line[..colon].trim_ascii(), value));
        }
    })
}

/// Iterates over the fields as Nix splits them: a key up to the next colon, one character that is
/// skipped, and a value up to the next line feed.
pub(super) struct NixFields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for NixFields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.0;
        let colon = text.iter().position(|byte| *byte == b':')?;
        let rest = text.get(colon + 2..)?;
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        self.0 = rest.get(end + 1..).unwrap_or_default();
        Some((&text[..colon], &rest[..end]))
    }
}

/// All NARs that a URL may mean. Clients resolve URLs in different ways (relative or absolute, with `..`,
/// doubled slashes, percent-encoding, a query), so each part of the URL that is the name of a NAR counts.
pub(super) fn nars_in_url(url: &[u8]) -> impl Iterator<Item = NarName> + use<> {
    let decoded = percent_decode(url).collect::<Vec<u8>>();
    let separates = |byte: &u8| byte.is_ascii_whitespace() || b"/\\?#&=".contains(byte);
    let parts = [url.to_vec(), decoded].into_iter().flat_map(move |text| {
        let parts = text.split(separates).map(|part| String::from_utf8_lossy(part).into_owned());
        parts.collect::<Vec<_>>()
    });
    parts.filter_map(|part| part.parse().ok())
}

fn store_path(value: &[u8]) -> Option<StorePath> {
    std::str::from_utf8(base_name(value)).ok()?.parse().ok()
}

fn hash_part(name: &[u8]) -> Option<StorePathHash> {
    let digits = base_name(name).get(..StorePathHash::LEN)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn base_name(path: &[u8]) -> &[u8] {
    path.trim_ascii().rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: &str = "8ha1dhmx807czjczmwy078s4r9s254il";
    const GLIBC: &str = "p9ydfyfln9r1cy6k8gwcrjgdvxmsnmrd";
    const NAR: &str = "0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz";

    fn read(text: &str) -> LenientNarInfo {
        LenientNarInfo::read(text.as_bytes())
    }

    fn named(text: &str) -> (Vec<String>, Vec<String>) {
        let named = read(text);
        let nars = named.nars.iter().map(ToString::to_string).collect();
        let mut references: Vec<_> = named.references.iter().map(ToString::to_string).collect();
        references.sort();
        (nars, references)
    }

    #[test]
    fn a_nar_is_found_in_every_spelling_of_its_url() {
        for url in [
            format!("nar/{NAR}"),
            format!(" nar/{NAR}\r"),
            format!("./nar//{NAR}"),
            format!("nar/../nar/{NAR}?hash=x#y"),
            format!("http://cache.example.org:8100/nar/{NAR}"),
            format!("nar%2F{NAR}"),
            format!("nar/%30{}", &NAR[1..]),
            format!("x?nar={NAR}"),
        ] {
            let (nars, _) = named(&format!("StorePath: x\nURL: {url}\n"));
            assert_eq!(nars, [NAR], "{url}");
        }
        assert!(named("URL: nar/hello.nar.xz\n").0.is_empty());
        assert!(read("URL: nar/hello.nar.xz\n").has_url);
    }

    #[test]
    fn fields_are_found_wherever_some_nix_finds_them() {
        let both = [HELLO.to_owned(), GLIBC.to_owned()];
        for text in [
            format!("References: {HELLO}-hello {GLIBC}-glibc\n"),
            format!("References:\t{HELLO}-hello  {GLIBC}-glibc\r\n"),
            // Nix skips one character without checking it.
            format!("References:x{HELLO}-hello {GLIBC}-glibc\n"),
            format!("References:\n{HELLO}-hello {GLIBC}-glibc\nNarSize: 1\n"),
            format!("References: {HELLO}-hello\nReferences: {GLIBC}-glibc\n"),
            format!("hello\n\nReferences: {HELLO}-hello {GLIBC}-{}\n", "x".repeat(300)),
            format!("StorePath: /gnu/store/{HELLO}-hello\nReferences: {GLIBC}-glibc"),
            format!("NarSize:\nReferences: {HELLO}-x,/nix/store/{GLIBC}-y\n"),
        ] {
            let (_, references) = named(&text);
            assert!(both.iter().all(|path| references.contains(path)), "{text}: {references:?}");
        }
        let text =
            format!("\u{fffd}\nStorePath: /nix/store/{HELLO}-hello\nDeriver: {GLIBC}-x.drv\n");
        let text = text.replace('\u{fffd}', "\u{1}").into_bytes();
        let named = LenientNarInfo::read(&[&b"\xff\xfe: x\n"[..], &text].concat());
        assert_eq!(named.store_path.unwrap().to_string(), format!("{HELLO}-hello"));
        assert_eq!(named.deriver.unwrap().to_string(), format!("{GLIBC}-x.drv"));
    }

    #[test]
    fn the_nar_that_nix_fetches_is_the_last_of_the_list() {
        let other = NAR.replace("0g8", "1g8");
        let text = format!("URL: nar/{NAR}\nURL: nar/{other}\n");
        assert_eq!(named(&text).0, [NAR, &other]);
        let text = format!("URL: nar/{NAR}\nURL: nar/{other}\nURL: nar/{NAR}\n");
        assert_eq!(named(&text).0, [&other, NAR]);
    }

    #[test]
    fn text_that_is_no_narinfo_names_no_objects() {
        for text in ["", "hello", "hello\n", "<html>\n<a href=\"x\">: </a>", "URL: \n", "a: b\n:\n"]
        {
            assert!(read(text).is_empty(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text: Vec<u8>) {
            LenientNarInfo::read(&text);
        }
    }
}
