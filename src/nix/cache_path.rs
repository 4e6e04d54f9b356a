//! The names of the objects in a binary cache. A name is parsed once, and printed from its parts.
//!
//! The grammar is that of Nix from 2.3 on (Nix's `src/libstore/binary-cache-store.cc`); no crate has it.
//! A [`CachePath`] also determines the key of the object in the store, its content type, its
//! `Cache-Control`, and its label in metrics.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use thiserror::Error;

use super::kind::ObjectKind;
use super::store_path::{ParseStorePathError, check_name};
use super::{Sha256Hash, StorePath, StorePathHash};

/// The name of an object in a binary cache.
///
/// [`FromStr`] and [`fmt::Display`] are inverse for the keys that Nix itself uses in a `file://` cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CachePath {
    /// `nix-cache-info`
    CacheInfo,
    /// `<hash part>.narinfo`: metadata of a store path.
    NarInfo(StorePathHash),
    /// `<hash part>.ls`: the files in the NAR of a store path.
    Listing(StorePathHash),
    /// `nar/<file hash>.nar[.<extension>]`
    Nar(NarName),
    /// `log/<name of a derivation>`: the log of its build. The name need not end with `.drv`: for a name
    /// with a `?`, Nix up to 2.31 sends the `.drv` in the query, and later versions drop it.
    Log(StorePath),
    /// `realisations/sha256:<64 hex>!<output>.doi`, Nix 2.4 to 2.34
    Realisation {
        /// Hash modulo of the derivation.
        derivation: HexDigits<64>,
        /// Name of the output.
        output: OutputName,
    },
    /// `build-trace-v<N>/<name of a derivation>/<output>.doi`, Nix 2.35 and later
    BuildTrace {
        /// Version of the format; 2 in Nix 2.35.
        version: u16,
        /// The derivation.
        derivation: StorePath,
        /// Name of the output.
        output: OutputName,
    },
    /// `debuginfo/<build id>[.debug]`: the NAR with the debug symbols. Nix writes `.debug` since 2.4,
    /// and dwarffs requests names without it, so both name the same object; the key ends with `.debug`.
    DebugInfo(HexDigits<40>),
}

/// The name of a NAR: hash and compression of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NarName {
    /// SHA-256 of the file, that is, of the compressed NAR.
    pub file_hash: Sha256Hash,
    /// Extension after `.nar`.
    pub extension: NarExtension,
}

/// The extension after `.nar` in the name of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NarExtension {
    /// No extension: not compressed, or compressed with a method for which Nix has no extension, such as
    /// gzip.
    Bare,
    /// `.xz`
    Xz,
    /// `.bz2`
    Bz2,
    /// `.br`
    Br,
    /// `.zst`
    Zst,
    /// `.lzip`
    Lzip,
    /// `.lz4`
    Lz4,
}

impl NarExtension {
    /// All extensions that Nix writes.
    pub const ALL: [Self; 7] =
        [Self::Bare, Self::Xz, Self::Bz2, Self::Br, Self::Zst, Self::Lzip, Self::Lz4];

    /// The extension with its dot, empty for [`NarExtension::Bare`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Xz => ".xz",
            Self::Bz2 => ".bz2",
            Self::Br => ".br",
            Self::Zst => ".zst",
            Self::Lzip => ".lzip",
            Self::Lz4 => ".lz4",
        }
    }
}

/// `N` lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HexDigits<const N: usize>([u8; N]);

impl<const N: usize> HexDigits<N> {
    fn parse(text: &str) -> Option<Self> {
        let digits: [u8; N] = text.as_bytes().try_into().ok()?;
        digits
            .iter()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
            .then_some(Self(digits))
    }
}

impl<const N: usize> fmt::Display for HexDigits<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|digit| write!(f, "{}", char::from(*digit)))
    }
}

/// The name of an output of a derivation, such as `out` or `dev`. It has only characters that the name
/// of a store path may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutputName(String);

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Error for text that is not the name of an object in a binary cache.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseCachePathError {
    /// The text has the form of none of the names.
    #[error(
        "“{0}” is not a name of a binary cache; names are nix-cache-info, <hash>.narinfo, \
         <hash>.ls, nar/<file hash>.nar[.xz|.bz2|.br|.zst|.lzip|.lz4], log/…, realisations/…, \
         build-trace-v2/… and debuginfo/…"
    )]
    Shape(String),
    /// Invalid hash part, or invalid name of a derivation.
    #[error("{0}")]
    StorePath(#[from] ParseStorePathError),
    /// Invalid hash before `.nar`.
    #[error("“{0}” is not a file hash: the name of a NAR begins with 52 characters of nix32")]
    FileHash(String),
    /// Unknown extension after `.nar`.
    #[error("“{0}” is not an extension of a NAR (.xz .bz2 .br .zst .lzip .lz4 or none)")]
    Extension(String),
    /// Invalid text before `!` in the name of a realisation.
    #[error("“{0}” is not “sha256:” with 64 lower-case hexadecimal digits")]
    DerivationHash(String),
    /// Invalid text before `.doi`.
    #[error("“{0}” is not the name of an output")]
    Output(String),
    /// Invalid number in `build-trace-v<N>`.
    #[error("“{0}” is not a version of the build trace format")]
    Version(String),
    /// Invalid text after `debuginfo/`.
    #[error("“{0}” is not a build id: 40 lower-case hexadecimal digits")]
    BuildId(String),
    /// Percent-encoded bytes that are not UTF-8.
    #[error("the percent-encoded name is not UTF-8")]
    Encoding,
}

impl CachePath {
    /// Parses the path and query of a request.
    ///
    /// The path is percent-decoded once; `+` does not mean a space; repeated slashes count as one (Nix up
    /// to 2.21 doubles them). The query is ignored, except for logs: Nix up to 2.31 does not encode a `?`
    /// in the name of a log.
    pub fn from_request(path: &str, query: Option<&str>) -> Result<Self, ParseCachePathError> {
        let decoded = decode(path)?;
        let mut key = single_slashes(decoded.trim_start_matches('/'));
        if let Some(query) = query
            && key.starts_with("log/")
        {
            let query = decode(query)?;
            key = Cow::Owned(format!("{key}?{query}"));
        }
        key.parse()
    }

    /// The key of the object in the store: a relative path, as in Nix's own `file://` caches. Its parts
    /// are never empty, `.` or `..`.
    pub fn key(&self) -> String {
        match self {
            // Most requests are for narinfos, and appending is several times as fast as formatting.
            Self::NarInfo(hash) => hash.to_nix32() + ".narinfo",
            _ => self.to_string(),
        }
    }

    /// Whether `key` and a slash can be the beginning of a name.
    pub fn is_folder(key: &str) -> bool {
        let (top, below) = key.split_once('/').unwrap_or((key, ""));
        match top {
            "nar" | "log" | "realisations" | "debuginfo" => below.is_empty(),
            _ => top.starts_with("build-trace-v") && !below.contains('/'),
        }
    }

    /// The content type with which Nix uploads the object.
    pub const fn content_type(&self) -> &'static str {
        match self {
            Self::CacheInfo => "text/x-nix-cache-info",
            Self::NarInfo(_) => "text/x-nix-narinfo",
            Self::Nar(_) => "application/x-nix-nar",
            Self::Log(_) => "text/plain; charset=utf-8",
            Self::Listing(_)
            | Self::Realisation { .. }
            | Self::BuildTrace { .. }
            | Self::DebugInfo(_) => "application/json",
        }
    }

    /// The `Cache-Control` header, for proxies and browsers; Nix ignores it.
    ///
    /// NARs never change. Narinfos can get more signatures, and side files can be replaced, so they may
    /// be cached for a minute.
    pub const fn cache_control(&self) -> &'static str {
        match self {
            Self::Nar(_) => "max-age=31536000, immutable",
            _ => "max-age=60",
        }
    }

    /// The kind of the object.
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::CacheInfo => ObjectKind::CacheInfo,
            Self::NarInfo(_) => ObjectKind::NarInfo,
            Self::Listing(_) => ObjectKind::Listing,
            Self::Nar(_) => ObjectKind::Nar,
            Self::Log(_) => ObjectKind::Log,
            Self::Realisation { .. } => ObjectKind::Realisation,
            Self::BuildTrace { .. } => ObjectKind::BuildTrace,
            Self::DebugInfo(_) => ObjectKind::DebugInfo,
        }
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, ParseCachePathError> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    percent_decode_str(text).decode_utf8().map_err(|_| ParseCachePathError::Encoding)
}

fn single_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    Cow::Owned(parts.join("/"))
}

impl FromStr for CachePath {
    type Err = ParseCachePathError;

    fn from_str(key: &str) -> Result<Self, Self::Err> {
        match key.split_once('/') {
            None => parse_top(key),
            Some(("nar", name)) => name.parse().map(Self::Nar),
            Some(("log", name)) => Ok(Self::Log(name.parse()?)),
            Some(("debuginfo", name)) => {
                let id = name.strip_suffix(".debug").unwrap_or(name);
                HexDigits::parse(id)
                    .map(Self::DebugInfo)
                    .ok_or_else(|| ParseCachePathError::BuildId(id.to_owned()))
            }
            Some(("realisations", name)) => parse_realisation(key, name),
            Some((folder, rest)) => match folder.strip_prefix("build-trace-v") {
                Some(version) => parse_build_trace(key, version, rest),
                None => Err(ParseCachePathError::Shape(key.to_owned())),
            },
        }
    }
}

fn parse_top(key: &str) -> Result<CachePath, ParseCachePathError> {
    if key == "nix-cache-info" {
        Ok(CachePath::CacheInfo)
    } else if let Some(hash) = key.strip_suffix(".narinfo") {
        Ok(CachePath::NarInfo(hash.parse()?))
    } else if let Some(hash) = key.strip_suffix(".ls") {
        Ok(CachePath::Listing(hash.parse()?))
    } else {
        Err(ParseCachePathError::Shape(key.to_owned()))
    }
}

impl FromStr for NarName {
    type Err = ParseCachePathError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (hash, extension) = name
            .split_once(".nar")
            .ok_or_else(|| ParseCachePathError::Shape(format!("nar/{name}")))?;
        Ok(Self {
            file_hash: Sha256Hash::parse_nix32(hash)
                .ok_or_else(|| ParseCachePathError::FileHash(hash.to_owned()))?,
            extension: NarExtension::ALL
                .into_iter()
                .find(|known| known.as_str() == extension)
                .ok_or_else(|| ParseCachePathError::Extension(extension.to_owned()))?,
        })
    }
}

impl fmt::Display for NarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.nar{}", self.file_hash.to_nix32(), self.extension.as_str())
    }
}

fn parse_realisation(key: &str, name: &str) -> Result<CachePath, ParseCachePathError> {
    let (id, output) = name
        .strip_suffix(".doi")
        .and_then(|name| name.split_once('!'))
        .ok_or_else(|| ParseCachePathError::Shape(key.to_owned()))?;
    Ok(CachePath::Realisation {
        derivation: id
            .strip_prefix("sha256:")
            .and_then(HexDigits::parse)
            .ok_or_else(|| ParseCachePathError::DerivationHash(id.to_owned()))?,
        output: parse_output(output)?,
    })
}

fn parse_build_trace(
    key: &str,
    version: &str,
    rest: &str,
) -> Result<CachePath, ParseCachePathError> {
    let (derivation, output) = rest
        .strip_suffix(".doi")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(|| ParseCachePathError::Shape(key.to_owned()))?;
    Ok(CachePath::BuildTrace {
        version: version
            .parse()
            .ok()
            // Each version has one spelling: no sign, no leading zero.
            .filter(|number: &u16| number.to_string() == version)
            .ok_or_else(|| ParseCachePathError::Version(version.to_owned()))?,
        derivation: derivation.parse()?,
        output: parse_output(output)?,
    })
}

/// Maximum length of an output name, in bytes: `sha256:<64 hex>!<output>.doi` must fit into a file name of
/// 255 bytes (`NAME_MAX` of Linux).
const MAX_OUTPUT_LEN: usize = 255 - 72 - 4;

fn parse_output(output: &str) -> Result<OutputName, ParseCachePathError> {
    if output.is_empty() || output.len() > MAX_OUTPUT_LEN || check_name(output).is_err() {
        return Err(ParseCachePathError::Output(output.to_owned()));
    }
    Ok(OutputName(output.to_owned()))
}

impl fmt::Display for CachePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CacheInfo => f.write_str("nix-cache-info"),
            Self::NarInfo(hash) => write!(f, "{hash}.narinfo"),
            Self::Listing(hash) => write!(f, "{hash}.ls"),
            Self::Nar(name) => write!(f, "nar/{name}"),
            Self::Log(derivation) => write!(f, "log/{derivation}"),
            Self::Realisation { derivation, output } => {
                write!(f, "realisations/sha256:{derivation}!{output}.doi")
            }
            Self::BuildTrace { version, derivation, output } => {
                write!(f, "build-trace-v{version}/{derivation}/{output}.doi")
            }
            Self::DebugInfo(id) => write!(f, "debuginfo/{id}.debug"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "8ha1dhmx807czjczmwy078s4r9s254il";
    const FILE: &str = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic";
    const HEX40: &str = "abcdef0123456789abcdef0123456789abcdef01";

    fn request(path: &str) -> Result<CachePath, ParseCachePathError> {
        CachePath::from_request(path, None)
    }

    #[test]
    fn the_key_of_a_name_is_the_name_that_nix_uses() {
        let hex64 = "a".repeat(64);
        let mut keys = vec![
            "nix-cache-info".to_owned(),
            format!("{HASH}.narinfo"),
            format!("{HASH}.ls"),
            format!("log/{HASH}-hello-1.0.drv"),
            format!("realisations/sha256:{hex64}!out.doi"),
            format!("build-trace-v2/{HASH}-hello.drv/dev.doi"),
            format!("debuginfo/{HEX40}.debug"),
        ];
        keys.extend(NarExtension::ALL.map(|e| format!("nar/{FILE}.nar{}", e.as_str())));
        for key in keys {
            assert_eq!(key.parse::<CachePath>().unwrap().key(), key);
            let path = request(&format!("/{key}")).unwrap();
            assert_eq!(path.key(), key);
            assert_eq!(ObjectKind::of_request(&format!("/{key}")), Some(path.kind()), "{key}");
        }
    }

    #[test]
    fn equivalent_urls_parse_to_the_same_path() {
        let hex64 = "a".repeat(64);
        for (one, other) in [
            (format!("/{HASH}.narinfo"), format!("//{HASH}%2Enarinfo")),
            (format!("/nar/{FILE}.nar"), format!("//nar//{FILE}.nar")),
            (format!("/debuginfo/{HEX40}"), format!("/debuginfo/{HEX40}.debug")),
            (
                format!("/realisations/sha256:{hex64}!out.doi"),
                format!("/realisations/sha256%3A{hex64}%21out.doi"),
            ),
            (format!("/log/{HASH}-c++.drv"), format!("/log/{HASH}-c%2B%2B.drv")),
        ] {
            assert_eq!(request(&one).unwrap(), request(&other).unwrap());
        }
    }

    #[test]
    fn the_name_of_a_log_may_contain_a_question_mark() {
        let encoded = request(&format!("/log/{HASH}-a%3Db%3Fc.drv")).unwrap();
        let raw = CachePath::from_request(&format!("/log/{HASH}-a=b"), Some("c.drv")).unwrap();
        assert_eq!(raw, encoded);
        let nar = format!("/nar/{FILE}.nar.xz");
        assert_eq!(CachePath::from_request(&nar, Some("x=y")), request(&nar));
    }

    #[test]
    fn an_invalid_name_is_refused_with_the_rule_that_it_breaks() {
        use ParseCachePathError as E;
        let long = "a".repeat(5000);
        for path in [
            "/",
            "/index.html",
            "/../etc/passwd",
            "/%2e%2e%2fetc%2fpasswd",
            "/nar/..%2f..%2fx.nar",
            "/nar/",
            "/nar",
            "/.narinfo",
            "/log/",
            "/.nix-stored/staging/x",
            "/x/y",
            "/nar/x/y.nar",
            long.as_str(),
        ] {
            assert!(request(path).is_err(), "{path}");
        }
        assert!(matches!(request("/short.narinfo"), Err(E::StorePath(_))));
        assert!(matches!(request(&format!("/{HASH}%00.narinfo")), Err(E::StorePath(_))));
        assert!(matches!(request(&format!("/nar/{HASH}.nar")), Err(E::FileHash(_))));
        assert!(matches!(request(&format!("/nar/z{}.nar", &FILE[1..])), Err(E::FileHash(_))));
        assert!(matches!(request(&format!("/nar/{FILE}.nar.gz")), Err(E::Extension(_))));
        assert!(matches!(request(&format!("/nar/{FILE}.nar.xz/..")), Err(E::Extension(_))));
        assert!(matches!(request(&format!("/debuginfo/{}", "g".repeat(40))), Err(E::BuildId(_))));
        assert!(matches!(
            request(&format!("/realisations/sha256:{HEX40}!out.doi")),
            Err(E::DerivationHash(_))
        ));
        assert!(matches!(
            request(&format!("/realisations/sha256:{}!a%2Fb.doi", "a".repeat(64))),
            Err(E::Output(_))
        ));
        assert!(matches!(
            request(&format!("/build-trace-v02/{HASH}-x.drv/out.doi")),
            Err(E::Version(_))
        ));
        assert!(matches!(request("/%ff.narinfo"), Err(E::Encoding)));
    }

    proptest! {
        #[test]
        fn no_key_leads_out_of_the_cache_or_to_private_files(path in ".{0,80}", query in "(.{0,20})?") {
            if let Ok(parsed) = CachePath::from_request(&path, Some(&query)) {
                let key = parsed.key();
                prop_assert!(key.split('/').all(|part| !matches!(part, "" | "." | ".." | ".nix-stored")));
                prop_assert_eq!(key.parse::<CachePath>(), Ok(parsed));
            }
        }

        #[test]
        fn keys_survive_the_round_trip(
            key in "([0-9a-df-np-sv-z]{32}\\.(narinfo|ls))\
                |(nar/[01][0-9a-df-np-sv-z]{51}\\.nar(\\.xz|\\.bz2|\\.br|\\.zst|\\.lzip|\\.lz4|))\
                |(log/[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+._?=]{1,40}\\.drv)\
                |(realisations/sha256:[0-9a-f]{64}![a-z]{1,9}\\.doi)\
                |(build-trace-v[1-9]/[0-9a-df-np-sv-z]{32}-[0-9a-z]{1,40}\\.drv/[a-z]{1,9}\\.doi)\
                |(debuginfo/[0-9a-f]{40}\\.debug)",
        ) {
            prop_assert_eq!(key.parse::<CachePath>().unwrap().key(), key);
        }
    }
}
