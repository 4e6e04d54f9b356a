//! Store paths: `/nix/store/<hash part>-<name>` (Nix's `src/libstore/path.cc`).
//!
//! `nix-compat` and `harmonia-store-core` have these types too, but as small parts of store
//! implementations that are not released yet.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::base32;

/// Error for text that is not a store path, or not a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseStorePathError {
    /// The path is not in the store directory.
    #[error("“{path}” is not inside the store dir {store_dir}")]
    StoreDir {
        /// The path.
        path: String,
        /// The store directory of this cache.
        store_dir: StoreDir,
    },
    /// The store directory is not an absolute path without a trailing slash.
    #[error("“{0}” is not a store dir: it must be an absolute path without “/” at the end")]
    NotAStoreDir(String),
    /// The hash part is not 32 characters of nix32.
    #[error("“{0}” does not begin with 32 characters of nix32 (0-9 a-z without e o t u)")]
    HashPart(String),
    /// No `-` and name follow the hash part.
    #[error("“{0}” has no “-” followed by a name after its hash part")]
    NoName(String),
    /// The name is too long.
    #[error("the name of a store path has {0} characters, but at most 211 are allowed")]
    NameLength(usize),
    /// The name is `.` or `..`, or begins with `.-` or `..-`.
    #[error("“{0}” begins with “.” or “..”, which is not allowed in the name of a store path")]
    Dots(String),
    /// The name has an invalid character.
    #[error("“{name}” has the character {character:?}; only 0-9 a-z A-Z + - . _ ? = are allowed")]
    Character {
        /// The name.
        name: String,
        /// Its first invalid character.
        character: char,
    },
}

/// The store directory of all paths in a cache, usually `/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDir(String);

impl FromStr for StoreDir {
    type Err = ParseStorePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.starts_with('/')
            && !text.ends_with('/')
            && !text.chars().any(char::is_control)
            && text[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
        if plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseStorePathError::NotAStoreDir(text.to_owned()))
        }
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".to_owned())
    }
}

impl StoreDir {
    /// The directory as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses a complete store path in this store directory.
    pub fn parse_path(&self, path: &str) -> Result<StorePath, ParseStorePathError> {
        path.strip_prefix(&self.0)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| ParseStorePathError::StoreDir {
                path: path.to_owned(),
                store_dir: self.clone(),
            })?
            .parse()
    }

    /// The complete store path of `path`.
    pub fn join(&self, path: &StorePath) -> String {
        format!("{}/{path}", self.0)
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The hash part of a store path: 160 bits, 32 characters of nix32. The narinfo is named after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePathHash([u8; 20]);

impl StorePathHash {
    /// The number of characters of a hash part.
    pub const LEN: usize = 32;

    /// Creates a hash part from its bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The hash part as 32 characters of nix32.
    pub fn to_nix32(self) -> String {
        base32::encode(&self.0)
    }

    /// The bytes of the hash part.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl FromStr for StorePathHash {
    type Err = ParseStorePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        base32::decode(text).map(Self).ok_or_else(|| ParseStorePathError::HashPart(text.to_owned()))
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The base name of a store path, `<hash part>-<name>`, as in `References`.
///
/// Invariants: the hash part is 32 characters of nix32; the name has 1 to 211 characters out of
/// `0-9 a-z A-Z + - . _ ? =`, and its first dash-separated part is neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePath {
    hash: StorePathHash,
    name: String,
}

impl StorePath {
    /// Maximum length of a name, in characters (Nix's `src/libstore/path.cc`).
    pub const MAX_NAME_LEN: usize = 211;

    /// The hash part.
    pub fn hash(&self) -> StorePathHash {
        self.hash
    }

    /// The name after the hash part and the `-`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for StorePath {
    type Err = ParseStorePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (hash, rest) = text
            .split_at_checked(StorePathHash::LEN)
            .ok_or_else(|| ParseStorePathError::HashPart(text.to_owned()))?;
        let hash = hash.parse().map_err(|_| ParseStorePathError::HashPart(text.to_owned()))?;
        let name = match rest.strip_prefix('-') {
            Some(name) if !name.is_empty() => name,
            _ => return Err(ParseStorePathError::NoName(text.to_owned())),
        };
        check_name(name)?;
        Ok(Self { hash, name: name.to_owned() })
    }
}

/// Checks the rules for the name of a store path, which also apply to output names.
pub(super) fn check_name(name: &str) -> Result<(), ParseStorePathError> {
    if name.len() > StorePath::MAX_NAME_LEN {
        return Err(ParseStorePathError::NameLength(name.len()));
    }
    if matches!(name.split('-').next(), Some("." | "..")) {
        return Err(ParseStorePathError::Dots(name.to_owned()));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || "+-._?=".contains(*c))) {
        None => Ok(()),
        Some(character) => Err(ParseStorePathError::Character { name: name.to_owned(), character }),
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash, self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "8ha1dhmx807czjczmwy078s4r9s254il";

    #[test]
    fn complete_store_paths_are_parsed_in_their_store_dir() {
        let store_dir = StoreDir::default();
        let path = store_dir
            .parse_path("/nix/store/8ha1dhmx807czjczmwy078s4r9s254il-hello-2.12.2")
            .unwrap();
        assert_eq!(path.hash().to_string(), HASH);
        assert_eq!(path.name(), "hello-2.12.2");
        assert!(store_dir.parse_path("/gnu/store/x").is_err());
        assert!(store_dir.parse_path(&format!("{path}")).is_err());
    }

    #[test]
    fn an_error_names_the_broken_rule() {
        use ParseStorePathError as E;
        let parse = |text: &str| text.parse::<StorePath>().unwrap_err();
        assert!(matches!(parse("short-x"), E::HashPart(_)));
        assert!(matches!(parse("ñha1dhmx807czjczmwy078s4r9s254il-x"), E::HashPart(_)));
        assert!(matches!(parse(HASH), E::NoName(_)));
        assert!(matches!(parse(&format!("{HASH}-")), E::NoName(_)));
        assert!(matches!(parse(&format!("{HASH}-..")), E::Dots(_)));
        assert!(matches!(parse(&format!("{HASH}-.-a")), E::Dots(_)));
        assert!(matches!(parse(&format!("{HASH}-a/b")), E::Character { character: '/', .. }));
        assert!(matches!(parse(&format!("{HASH}-{}", "a".repeat(212))), E::NameLength(212)));
        assert!(format!("{HASH}-{}", "a".repeat(211)).parse::<StorePath>().is_ok());
        assert!(format!("{HASH}-.bashrc").parse::<StorePath>().is_ok());
    }

    #[test]
    fn a_store_dir_is_a_plain_absolute_path() {
        for text in ["", "/", "nix/store", "/nix/store/", "/nix//store", "/nix/../store"] {
            assert!(text.parse::<StoreDir>().is_err(), "{text}");
        }
        assert!("/gnu/store".parse::<StoreDir>().is_ok());
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(
            text in "[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+_?=][0-9a-zA-Z+._?=-]{0,210}",
        ) {
            prop_assert_eq!(text.parse::<StorePath>().unwrap().to_string(), text);
        }
    }
}
