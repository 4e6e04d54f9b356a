//! Signatures of store paths and the keys that they are checked with, both `<key name>:<base 64>`
//! (Nix's `src/libutil/signature/local-keys.cc`).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use thiserror::Error;

/// Why a text is not a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSignatureError {
    /// No colon, or nothing before it, or white space in the name.
    #[error("the signature “{0}” is not “<key name>:<base 64>”")]
    Shape(String),
    /// The part after the colon is not 64 bytes of base 64. Nix 2.34 and later refuse a whole
    /// narinfo for one of these.
    #[error("the signature “{0}” is not 64 bytes of base 64 after its key's name")]
    Bytes(String),
}

/// An Ed25519 signature and the name of the key that made it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signature {
    key_name: String,
    bytes: [u8; 64],
}

impl Signature {
    /// The name of the key that is said to have made it.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The signature itself.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

/// The public half of a key, as `nix key convert-secret-to-public` prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

/// Why a text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("“{0}” is not a public key: <name>:<32 bytes of base 64>")]
pub struct ParsePublicKeyError(String);

impl PublicKey {
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's on `fingerprint`.
    pub fn verifies(&self, fingerprint: &str, signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        self.name == signature.key_name
            && self.key.verify_strict(fingerprint.as_bytes(), &bytes).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = ParsePublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (name, digits) = text.split_once(':')?;
            let bytes: [u8; 32] = STANDARD.decode(digits).ok()?.try_into().ok()?;
            let key = VerifyingKey::from_bytes(&bytes).ok()?;
            (!name.is_empty()).then(|| Self { name: name.to_owned(), key })
        };
        parse().ok_or_else(|| ParsePublicKeyError(text.to_owned()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, STANDARD.encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Signature {
    type Err = ParseSignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = || ParseSignatureError::Shape(text.to_owned());
        let (key_name, digits) = text.split_once(':').ok_or_else(shape)?;
        // Nix's disk cache joins signatures by spaces: one in a name would tear it apart.
        if key_name.is_empty() || key_name.contains(char::is_whitespace) {
            return Err(shape());
        }
        Ok(Self {
            key_name: key_name.to_owned(),
            bytes: STANDARD
                .decode(digits)
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or_else(|| ParseSignatureError::Bytes(text.to_owned()))?,
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key_name, STANDARD.encode(self.bytes))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
