//! SHA-256 hashes, which name and verify the objects of a binary cache.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER_PERMISSIVE;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::base32;

/// A SHA-256 hash. Printed as in a narinfo: `sha256:` and 52 characters of nix32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Hash([u8; 32]);

/// Error for text that is not a SHA-256 hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseHashError {
    /// Another algorithm, or none.
    #[error("“{0}” is not a sha256 hash")]
    Algorithm(String),
    /// Invalid digits, or too few or too many.
    #[error("“{0}” is not a sha256 hash in nix32, base 16 or base 64")]
    Digits(String),
}

impl Sha256Hash {
    /// Creates a hash from its bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses 52 characters of nix32, as in the name of a NAR.
    pub fn parse_nix32(text: &str) -> Option<Self> {
        base32::decode(text).map(Self)
    }

    /// The hash as 52 characters of nix32.
    pub fn to_nix32(self) -> String {
        base32::encode(&self.0)
    }

    /// Parses a hash as Nix does in a narinfo: `sha256:` with nix32, base 16 or base 64, or SRI's
    /// `sha256-` with base 64 (Nix's `src/libutil/hash.cc`).
    pub fn parse(text: &str) -> Result<Self, ParseHashError> {
        if let Some(digits) = text.strip_prefix("sha256-") {
            return Self::parse_base64(digits)
                .ok_or_else(|| ParseHashError::Digits(text.to_owned()));
        }
        let digits = text
            .strip_prefix("sha256:")
            .ok_or_else(|| ParseHashError::Algorithm(text.to_owned()))?;
        match digits.len() {
            52 => Self::parse_nix32(digits),
            64 => HEXLOWER_PERMISSIVE
                .decode(digits.as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .map(Self),
            _ => Self::parse_base64(digits),
        }
        .ok_or_else(|| ParseHashError::Digits(text.to_owned()))
    }

    fn parse_base64(digits: &str) -> Option<Self> {
        STANDARD.decode(digits).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_nix32())
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_encodings_that_nix_accepts_are_equivalent() {
        let hash = Sha256Hash::parse("sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic")
            .unwrap();
        for text in [
            "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "sha256:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
            "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
        ] {
            assert_eq!(Sha256Hash::parse(text), Ok(hash));
        }
    }

    #[test]
    fn an_error_quotes_the_invalid_hash() {
        for text in ["", "md5:abc", "sha256", "sha256:", "sha256:xyz", "sha256-zz"] {
            let error = Sha256Hash::parse(text).unwrap_err();
            assert!(error.to_string().contains(text));
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(bytes: [u8; 32]) {
            let hash = Sha256Hash::new(bytes);
            prop_assert_eq!(Sha256Hash::parse(&hash.to_string()), Ok(hash));
        }
    }
}
