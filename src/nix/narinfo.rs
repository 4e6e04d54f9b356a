//! Narinfos: metadata of a store path, as `Key: value` lines (Nix's `src/libstore/nar-info.cc`).
//!
//! The crates for narinfos do not fit a server: `narinfo` keeps one signature and drops unknown fields;
//! `nix-narinfo` rewrites signatures and references, and trims values, which Nix does not. This parser is
//! strict, because a mistake that one version of Nix ignores makes another version refuse the narinfo. Each
//! error names the field or line.

use std::collections::HashSet;
use std::fmt;

use thiserror::Error;

use super::cache_path::{CachePath, NarName};
use super::hash::ParseHashError;
use super::lenient::{NixFields, nars_in_url};
use super::signature::{ParseSignatureError, Signature};
use super::store_path::ParseStorePathError;
use super::{Sha256Hash, StoreDir, StorePath};

/// Maximum size of a narinfo, in bytes, for uploads, reads, scans and mirrors. The narinfo of a path with
/// 14,000 references has 1.5 MB.
pub const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// Maximum number of signatures in a published narinfo. Clients verify each signature.
pub const MAX_SIGNATURES: usize = 64;

/// A narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// Store directory of `store_path`.
    pub store_dir: StoreDir,
    /// The store path that the narinfo describes.
    pub store_path: StorePath,
    /// Location of the NAR, relative to the cache. Signatures do not cover it.
    pub url: String,
    /// Compression of the file at `url`; Nix's default is `bzip2`.
    pub compression: String,
    /// SHA-256 of the file at `url`.
    pub file_hash: Option<Sha256Hash>,
    /// Length of the file at `url`, in bytes.
    pub file_size: Option<u64>,
    /// SHA-256 of the unpacked NAR.
    pub nar_hash: Sha256Hash,
    /// Length of the unpacked NAR, in bytes; never zero.
    pub nar_size: u64,
    /// The store paths that this path refers to, which may include itself.
    pub references: Vec<StorePath>,
    /// The derivation that built the path.
    pub deriver: Option<StorePath>,
    /// Distinct signatures, in the order of their lines.
    pub signatures: Vec<Signature>,
    /// Content address of the path.
    pub ca: Option<String>,
    /// Keys and values of unknown fields.
    pub unknown: Vec<(String, String)>,
}

/// Error for text that is not a valid narinfo.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseNarInfoError {
    /// Not UTF-8.
    #[error("the narinfo is not UTF-8")]
    Utf8,
    /// Not `Key: value`.
    #[error("line {number} of the narinfo is not “Key: value”: “{line}”")]
    Line {
        /// Number of the line, from 1.
        number: usize,
        /// The first 80 characters of the line.
        line: String,
    },
    /// The last line has no line feed, so the narinfo may be truncated.
    #[error("the narinfo ends without a line feed")]
    Unfinished,
    /// A required field is missing.
    #[error("the narinfo has no {0}")]
    Missing(&'static str),
    /// A field that may occur only once occurs again.
    #[error("the narinfo has more than one {0}")]
    Twice(String),
    /// A field that needs a value is empty, or `NarSize` is zero.
    #[error("the narinfo's {0} is empty")]
    Empty(&'static str),
    /// An invalid size.
    #[error("the narinfo's {field} is “{value}”, which is not a size in bytes")]
    Size {
        /// Key of the field.
        field: &'static str,
        /// Value of the field.
        value: String,
    },
    /// An invalid hash.
    #[error("the narinfo's {field}: {source}")]
    Hash {
        /// Key of the field.
        field: &'static str,
        /// The error.
        source: ParseHashError,
    },
    /// An invalid store path.
    #[error("the narinfo's {field}: {source}")]
    StorePath {
        /// Key of the field.
        field: &'static str,
        /// The error.
        source: ParseStorePathError,
    },
    /// An invalid signature.
    #[error("the narinfo's Sig: {0}")]
    Signature(#[from] ParseSignatureError),
}

/// The value that Nix writes for a path without a known deriver.
const UNKNOWN_DERIVER: &str = "unknown-deriver";

impl NarInfo {
    /// Parses a narinfo strictly; its paths must be in `store_dir`.
    pub fn parse(bytes: &[u8], store_dir: &StoreDir) -> Result<Self, ParseNarInfoError> {
        let text = str::from_utf8(bytes).map_err(|_| ParseNarInfoError::Utf8)?;
        let mut fields = NarInfoFields::split(text)?;
        let size = |field, value: &str| {
            value.parse().map_err(|_| ParseNarInfoError::Size { field, value: value.to_owned() })
        };
        let hash = |field, value| {
            Sha256Hash::parse(value).map_err(|source| ParseNarInfoError::Hash { field, source })
        };
        let path_error = |field| move |source| ParseNarInfoError::StorePath { field, source };

        let nar_size = size("NarSize", fields.required("NarSize")?)?;
        if nar_size == 0 {
            return Err(ParseNarInfoError::Empty("NarSize"));
        }
        Ok(Self {
            store_dir: store_dir.clone(),
            store_path: store_dir
                .parse_path(fields.required("StorePath")?)
                .map_err(path_error("StorePath"))?,
            url: fields.required("URL")?.to_owned(),
            compression: fields
                .optional("Compression")
                .filter(|value| !value.is_empty())
                .unwrap_or("bzip2")
                .to_owned(),
            file_hash: fields
                .optional("FileHash")
                .map(|value| hash("FileHash", value))
                .transpose()?,
            file_size: fields
                .optional("FileSize")
                .map(|value| size("FileSize", value))
                .transpose()?,
            nar_hash: hash("NarHash", fields.required("NarHash")?)?,
            nar_size,
            references: fields
                .optional("References")
                .unwrap_or_default()
                .split(' ')
                .filter(|name| !name.is_empty())
                .map(|name| name.parse().map_err(path_error("References")))
                .collect::<Result<_, _>>()?,
            deriver: match fields.optional("Deriver") {
                None | Some(UNKNOWN_DERIVER) => None,
                Some("") => return Err(ParseNarInfoError::Empty("Deriver")),
                Some(name) => Some(name.parse().map_err(path_error("Deriver"))?),
            },
            signatures: {
                // Nix keeps signatures in a set, so duplicates do not count.
                let mut known = HashSet::new();
                fields.signatures.retain(|text| known.insert(*text));
                fields.signatures.iter().map(|text| text.parse()).collect::<Result<_, _>>()?
            },
            ca: fields.optional("CA").filter(|value| !value.is_empty()).map(str::to_owned),
            unknown: fields
                .unknown
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        })
    }

    /// Parses a narinfo as tolerantly as Nix does. For narinfos from upstreams, which Nix would otherwise
    /// read itself.
    ///
    /// Like Nix, it uses the last of repeated fields and ignores invalid signatures (Nix's
    /// `src/libstore/nar-info.cc`). It also ignores an invalid `FileSize`, and a `FileHash` that is not
    /// SHA-256, because such a hash names no NAR of this cache.
    pub fn parse_as_nix(bytes: &[u8], store_dir: &StoreDir) -> Result<Self, ParseNarInfoError> {
        if !bytes.ends_with(b"\n") {
            return Err(ParseNarInfoError::Unfinished);
        }
        let mut single: [Option<&str>; SINGLE_FIELDS.len()] = Default::default();
        let mut others = Vec::new();
        for (key, value) in NixFields(bytes) {
            let text = |bytes| str::from_utf8(bytes).map_err(|_| ParseNarInfoError::Utf8);
            let (key, value) = (text(key)?, text(value)?);
            match (SINGLE_FIELDS.iter().position(|known| *known == key), key) {
                (Some(at), "References" | "CA")
                    if single[at].is_some_and(|text| !text.is_empty()) =>
                {
                    return Err(ParseNarInfoError::Twice(SINGLE_FIELDS[at].to_owned()));
                }
                (Some(_), "FileHash") if Sha256Hash::parse(value).is_err() => {}
                (Some(_), "FileSize") if value.parse::<u64>().is_err() => {}
                (Some(at), _) => single[at] = Some(value),
                (None, "Sig") if value.parse::<Signature>().is_err() => {}
                // Nix reads text without a colon as the beginning of the next key.
                (None, _) if key.contains(['\n', '\r']) || key.is_empty() => {}
                (None, _) => others.push((key, value)),
            }
        }
        let single =
            SINGLE_FIELDS.iter().zip(single).filter_map(|(key, value)| Some((*key, value?)));
        let text: String =
            single.chain(others).map(|(key, value)| format!("{key}: {value}\n")).collect();
        Self::parse(text.as_bytes(), store_dir)
    }

    /// The text that is signed (Nix's `src/libstore/path-info.cc`). It does not cover URL, compression and
    /// deriver.
    pub fn fingerprint(&self) -> String {
        let mut references: Vec<String> =
            self.references.iter().map(|path| self.store_dir.join(path)).collect();
        references.sort_unstable();
        references.dedup();
        format!(
            "1;{};{};{};{}",
            self.store_dir.join(&self.store_path),
            self.nar_hash,
            self.nar_size,
            references.join(",")
        )
    }

    /// The upstream that the narinfo was mirrored from. The field is our own; Nix ignores unknown keys
    /// (Nix's `src/libstore/nar-info.cc`).
    pub fn upstream(&self) -> Option<&str> {
        self.unknown.iter().find(|(key, _)| key == UPSTREAM).map(|(_, value)| value.as_str())
    }

    /// Sets or removes the upstream.
    pub fn set_upstream(&mut self, upstream: Option<&str>) {
        self.unknown.retain(|(key, _)| key != UPSTREAM);
        self.unknown.extend(upstream.map(|url| (UPSTREAM.to_owned(), url.to_owned())));
    }

    /// The NAR of this cache that clients fetch, for any spelling of `URL`: libcurl resolves `.` and `..`,
    /// and the cache accepts doubled slashes and percent-encoding.
    pub fn fetched_nar(&self) -> Option<NarName> {
        if let Some(name) = self.nar_name() {
            return Some(name);
        }
        let mut parts = Vec::new();
        for part in self.url.split(['?', '#']).next()?.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        match CachePath::from_request(&parts.join("/"), None) {
            Ok(CachePath::Nar(name)) => Some(name),
            _ => None,
        }
    }

    /// A NAR that `URL` may mean to some client. See [`LenientNarInfo`](super::LenientNarInfo).
    pub fn named_nar(&self) -> Option<NarName> {
        self.nar_name().or_else(|| nars_in_url(self.url.as_bytes()).last())
    }

    /// The NAR in this cache whose key is `URL`; `None` for any other URL.
    pub fn nar_name(&self) -> Option<NarName> {
        match self.url.parse() {
            Ok(CachePath::Nar(name)) => Some(name),
            _ => None,
        }
    }
}

/// Key of the field with the upstream that a narinfo was mirrored from.
const UPSTREAM: &str = "Upstream";

/// Keys of the fields that may occur only once, in the order in which Nix writes them.
const SINGLE_FIELDS: [&str; 10] = [
    "StorePath",
    "URL",
    "Compression",
    "FileHash",
    "FileSize",
    "NarHash",
    "NarSize",
    "References",
    "Deriver",
    "CA",
];

#[derive(Default)]
struct NarInfoFields<'a> {
    single: [Option<&'a str>; SINGLE_FIELDS.len()],
    signatures: Vec<&'a str>,
    unknown: Vec<(&'a str, &'a str)>,
}

impl<'a> NarInfoFields<'a> {
    fn split(text: &'a str) -> Result<Self, ParseNarInfoError> {
        let mut fields = Self::default();
        let body = text.strip_suffix('\n').ok_or(ParseNarInfoError::Unfinished)?;
        for (index, line) in body.split('\n').enumerate() {
            // Nix's key ends at the first colon, and Nix skips the next character without checking it.
            // Only with a space there, and without carriage returns, do all parsers agree.
            let (key, value) = line
                .split_once(": ")
                .filter(|(key, _)| !key.is_empty() && !key.contains(':') && !line.contains('\r'))
                .ok_or_else(|| ParseNarInfoError::Line {
                    number: index + 1,
                    line: line.chars().take(80).collect(),
                })?;
            match SINGLE_FIELDS.iter().position(|known| *known == key) {
                Some(at) if fields.single[at].replace(value).is_some() => {
                    return Err(ParseNarInfoError::Twice(key.to_owned()));
                }
                Some(_) => {}
                None if key == "Sig" => fields.signatures.push(value),
                None => fields.unknown.push((key, value)),
            }
        }
        Ok(fields)
    }

    fn optional(&self, key: &'static str) -> Option<&'a str> {
        SINGLE_FIELDS.iter().position(|known| *known == key).and_then(|at| self.single[at])
    }

    fn required(&self, key: &'static str) -> Result<&'a str, ParseNarInfoError> {
        match self.optional(key) {
            None => Err(ParseNarInfoError::Missing(key)),
            Some("") => Err(ParseNarInfoError::Empty(key)),
            Some(value) => Ok(value),
        }
    }
}

/// Writes the lines in Nix's order, unknown ones last.
impl fmt::Display for NarInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StorePath: {}", self.store_dir.join(&self.store_path))?;
        writeln!(f, "URL: {}", self.url)?;
        writeln!(f, "Compression: {}", self.compression)?;
        if let Some(hash) = &self.file_hash {
            writeln!(f, "FileHash: {hash}")?;
        }
        if let Some(size) = self.file_size {
            writeln!(f, "FileSize: {size}")?;
        }
        writeln!(f, "NarHash: {}", self.nar_hash)?;
        writeln!(f, "NarSize: {}", self.nar_size)?;
        // The space is needed even if there are no references: see `NarInfoFields::split`.
        f.write_str("References: ")?;
        for (index, path) in self.references.iter().enumerate() {
            write!(f, "{}{path}", if index == 0 { "" } else { " " })?;
        }
        f.write_str("\n")?;
        if let Some(path) = &self.deriver {
            writeln!(f, "Deriver: {path}")?;
        }
        for signature in &self.signatures {
            writeln!(f, "Sig: {signature}")?;
        }
        if let Some(ca) = &self.ca {
            writeln!(f, "CA: {ca}")?;
        }
        for (key, value) in &self.unknown {
            writeln!(f, "{key}: {value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    const HELLO: &str = "\
StorePath: /nix/store/8ha1dhmx807czjczmwy078s4r9s254il-hello-2.12.2
URL: nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz
Compression: xz
FileHash: sha256:0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny
FileSize: 50088
NarHash: sha256:13pc5gkifwvnsz1f3wx1hpg5k3zlhlp3lqqy4xdr0rr2pl6rqi3j
NarSize: 226552
References: 8ha1dhmx807czjczmwy078s4r9s254il-hello-2.12.2 p9ydfyfln9r1cy6k8gwcrjgdvxmsnmrd-glibc-2.40
Deriver: 7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv
Sig: cache.example.org-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
Sig: other-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
System: x86_64-linux
";

    fn parse(text: &str) -> Result<NarInfo, ParseNarInfoError> {
        NarInfo::parse(text.as_bytes(), &StoreDir::default())
    }

    #[test]
    fn repeated_signatures_and_unknown_lines_are_kept() {
        let info = parse(HELLO).unwrap();
        assert_eq!(info.signatures.len(), 2);
        assert_eq!(info.signatures[1].key_name(), "other-1");
        assert_eq!(info.unknown, [("System".to_owned(), "x86_64-linux".to_owned())]);
        assert_eq!(info.references.len(), 2);
        assert_eq!(info.nar_name().unwrap().file_hash, info.file_hash.unwrap());
        assert_eq!(info.to_string(), HELLO);
    }

    #[test]
    fn defaults_are_those_of_nix() {
        let text = HELLO.replace("Compression: xz", "Compression: ");
        assert_eq!(parse(&text).unwrap().compression, "bzip2");
        let text =
            HELLO.replace("7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv", "unknown-deriver");
        assert_eq!(parse(&text).unwrap().deriver, None);
    }

    #[test]
    fn an_error_names_the_invalid_line_or_field() {
        use ParseNarInfoError as E;
        let with = |from: &str, to: &str| parse(&HELLO.replace(from, to)).unwrap_err();
        assert_eq!(parse(""), Err(E::Unfinished));
        assert!(matches!(parse("\n"), Err(E::Line { number: 1, .. })));
        assert!(matches!(parse(&format!("{HELLO}\n")), Err(E::Line { number: 13, .. })));
        assert_eq!(parse(HELLO.trim_end()), Err(E::Unfinished));
        assert!(matches!(with("URL: ", "URL:"), E::Line { number: 2, .. }));
        assert!(matches!(with("\n", "\r\n"), E::Line { number: 1, .. }));
        assert_eq!(with("NarSize: 226552\n", ""), E::Missing("NarSize"));
        assert_eq!(with("NarSize: 226552", "NarSize: 0"), E::Empty("NarSize"));
        assert!(matches!(with("NarSize: 226552", "NarSize: -1"), E::Size { .. }));
        assert!(matches!(with("FileHash: sha256", "FileHash: sha1"), E::Hash { .. }));
        assert!(matches!(with("/nix/store/", "/gnu/store/"), E::StorePath { .. }));
        assert!(matches!(with(" p9yd", " ../p9yd"), E::StorePath { field: "References", .. }));
        assert!(matches!(with("Sig: other-1:", "Sig: other-1"), E::Signature(_)));
        assert!(matches!(with("Sig: other-1:AAAA", "Sig: other-1:"), E::Signature(_)));
        assert_eq!(with("System: ", "NarSize: "), E::Twice("NarSize".to_owned()));
        assert_eq!(NarInfo::parse(b"\xff", &StoreDir::default()), Err(E::Utf8));
    }

    #[test]
    fn parsing_as_nix_ignores_what_nix_ignores() {
        let as_nix = |text: &str| NarInfo::parse_as_nix(text.as_bytes(), &StoreDir::default());
        assert_eq!(as_nix(HELLO).unwrap(), parse(HELLO).unwrap());
        let changed = |from: &str, to: &str| as_nix(&HELLO.replace(from, to));
        // The last of repeated fields counts; the character after a colon is skipped.
        assert_eq!(changed("URL: ", "URL: nar/x\nURL: ").unwrap(), parse(HELLO).unwrap());
        assert_eq!(changed("URL: ", "URL:\t").unwrap(), parse(HELLO).unwrap());
        assert_eq!(
            changed("URL: ", "no line\nof any kind: x\nURL: ").unwrap(),
            parse(HELLO).unwrap()
        );
        // An invalid signature.
        assert_eq!(changed("Sig: other-1:", "Sig: other-1").unwrap().signatures.len(), 1);
        // A file hash that is not SHA-256.
        for hash in ["sha512:abc", "md5:abc", ""] {
            let text = format!("{HELLO}FileHash: {hash}\n");
            assert_eq!(as_nix(&text).unwrap().file_hash, parse(HELLO).unwrap().file_hash, "{hash}");
        }
        let line = HELLO.lines().find(|line| line.starts_with("FileHash")).unwrap();
        assert_eq!(changed(line, "FileHash: sha512:abc").unwrap().file_hash, None);
        use ParseNarInfoError as E;
        assert_eq!(as_nix(HELLO.trim_end()), Err(E::Unfinished));
        assert_eq!(changed("NarSize: 226552\n", ""), Err(E::Missing("NarSize")));
        assert_eq!(changed("System: ", "References: "), Err(E::Twice("References".to_owned())));
        assert!(as_nix("<html>Sign in</html>\n").is_err());
    }

    /// The best of five times to parse a narinfo with this number of signatures.
    fn time_to_parse(signatures: usize) -> Duration {
        let signature = |number: usize| {
            let mut bytes = [0; 64];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
            format!("Sig: key-1:{text}\n")
        };
        let text = HELLO.to_owned() + &(0..signatures).map(signature).collect::<String>();
        let parse = |_| {
            let started = Instant::now();
            let _ = parse(&text);
            started.elapsed()
        };
        (0..5).map(parse).min().unwrap()
    }

    #[test]
    fn parsing_time_grows_linearly_with_the_number_of_signatures() {
        let (few, many) = (time_to_parse(1000), time_to_parse(10_000));
        assert!(many < few * 40, "{few:?} and {many:?}");
    }

    prop_compose! {
        fn store_path()(text in "[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+_?=.-]{0,20}x") -> Option<StorePath> {
            text.parse().ok()
        }
    }

    prop_compose! {
        fn nar_info()(
            store_path in store_path().prop_filter_map("a name", |path| path),
            url in "[!-~]{1,60}",
            compression in "[a-z0-9]{1,6}",
            file_hash: Option<[u8; 32]>,
            file_size: Option<u64>,
            nar_hash: [u8; 32],
            nar_size in 1u64..,
            references in proptest::collection::vec(store_path(), 0..4),
            deriver in store_path(),
            signatures in proptest::collection::vec(("[!-9;-~]{1,12}", any::<[u8; 32]>()), 0..4),
            ca in proptest::option::of("[!-~]{1,60}"),
            unknown in proptest::collection::vec(("X-[A-Za-z]{1,8}", "[ -~é]{0,20}"), 0..3),
        ) -> NarInfo {
            NarInfo {
                store_dir: StoreDir::default(),
                store_path,
                url,
                compression,
                file_hash: file_hash.map(Sha256Hash::new),
                file_size,
                nar_hash: Sha256Hash::new(nar_hash),
                nar_size,
                references: references.into_iter().flatten().collect(),
                deriver,
                signatures: std::collections::BTreeMap::from_iter(signatures)
                    .into_iter()
                    .map(|(name, half)| {
                        let text = base64::Engine::encode(
                            &base64::engine::general_purpose::STANDARD,
                            [half, half].concat(),
                        );
                        format!("{name}:{text}").parse().unwrap()
                    })
                    .collect(),
                ca,
                unknown,
            }
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(info in nar_info()) {
            prop_assert_eq!(parse(&info.to_string()), Ok(info));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = NarInfo::parse_as_nix(&bytes, &StoreDir::default());
            let _ = NarInfo::parse(&bytes, &StoreDir::default());
        }
    }
}
