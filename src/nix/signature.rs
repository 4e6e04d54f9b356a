//! Signatures of store paths, and the public keys that verify them. Both have the form
//! `<key name>:<base 64>` (Nix's `src/libutil/signature/local-keys.cc`).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use thiserror::Error;

/// Error for text that is not a signature.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSignatureError {
    /// There is no colon, or the key name is empty or contains white space.
    #[error("the signature “{0}” is not “<key name>:<base 64>”")]
    Shape(String),
    /// The text after the colon is not the base 64 of 64 bytes. Nix 2.34 and later refuse a narinfo that
    /// contains such a signature.
    #[error("the signature “{0}” is not 64 bytes of base 64 after the key name")]
    Bytes(String),
}

/// An Ed25519 signature, with the name of its key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signature {
    key_name: String,
    bytes: [u8; 64],
}

impl Signature {
    /// The stated name of the key.
    pub fn key_name(&self) -> &str {
        &self.key_name
    }

    /// The bytes of the signature.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.bytes
    }
}

/// A public key, as `nix key convert-secret-to-public` prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

/// Error for text that is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("“{0}” is not a public key: <name>:<32 bytes of base 64>")]
pub struct ParsePublicKeyError(String);

impl PublicKey {
    /// The name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` has the name of this key and is valid for `fingerprint`.
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
        // Nix's disk cache joins signatures with spaces, so a space in a name would split a signature.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{NarInfo, StoreDir};

    const NIXOS: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    /// Narinfos with the keys that signed them: two from cache.nixos.org, and one that `nix store sign` of
    /// Nix 2.8 has signed with a test key.
    const SIGNED: [(&str, &str); 3] = [
        (
            NIXOS,
            "StorePath: /nix/store/w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.10\n\
             URL: nar/15zk4zszw9lgkdkkwy7w11m5vag11n5dhv2i6hj308qpxczvdddx.nar.xz\n\
             Compression: xz\n\
             FileHash: sha256:15zk4zszw9lgkdkkwy7w11m5vag11n5dhv2i6hj308qpxczvdddx\n\
             FileSize: 41232\n\
             NarHash: sha256:1mi14cqk363wv368ffiiy01knardmnlyphi6h9xv6dkjz44hk30i\n\
             NarSize: 205968\n\
             References: 9df65igwjmf2wbw0gbrrgair6piqjgmi-glibc-2.31 w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.10\n\
             Sig: cache.nixos.org-1:uP5KU8MCmyRnKGlN5oEv6xWJBI5EO/Pf5aFztZuLSz8BpCcZ1fdBnJkVXhBAlxkdm/CemsgQskhwvyd2yghTAg==\n",
        ),
        (
            NIXOS,
            "StorePath: /nix/store/syd87l2rxw8cbsxmxl853h0r6pdwhwjr-curl-7.82.0-bin\n\
             URL: nar/05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56.nar.xz\n\
             Compression: xz\n\
             FileHash: sha256:05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56\n\
             FileSize: 68852\n\
             NarHash: sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0\n\
             NarSize: 196040\n\
             References: 0jqd0rlxzra1rs38rdxl43yh6rxchgc6-curl-7.82.0 6w8g7njm4mck5dmjxws0z1xnrxvl81xa-glibc-2.34-115 j5jxw3iy7bbz4a57fh9g2xm2gxmyal8h-zlib-1.2.12 yxvjs9drzsphm9pcf42a4byzj1kb9m7k-openssl-1.1.1n\n\
             Deriver: 5rwxzi7pal3qhpsyfc16gzkh939q1np6-curl-7.82.0.drv\n\
             Sig: cache.nixos.org-1:TsTTb3WGTZKphvYdBHXwo6weVILmTytUjLB+vcX89fOjjRicCHmKA4RCPMVLkj6TMJ4GMX3HPVWRdD1hkeKZBQ==\n",
        ),
        (
            "test-1:Q50WW5eEQ+zEAmyYW6qFkj+SuOGipY/hpNhJkXYQOKo=",
            "StorePath: /nix/store/pi8axnzkz80qa3x5smwjwxcc9n9hjik0-h\n\
             URL: nar/17gd6zzlkx90irc6qawagdkgh1d7qvlnq46yjf7xiqw9ycz7zq4a.nar.xz\n\
             Compression: xz\n\
             FileHash: sha256:17gd6zzlkx90irc6qawagdkgh1d7qvlnq46yjf7xiqw9ycz7zq4a\n\
             FileSize: 128\n\
             NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\n\
             NarSize: 120\n\
             References: \n\
             Sig: test-1:hvRfXMOeqTWyzN1LYkGC5IWcvhJn95Zt086YK+C8j7GJtDObE+6aT+UD7aET+CwxXEKL3oioBprSAKu7rG5jCQ==\n\
             CA: fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\n",
        ),
    ];

    fn verifies(key: &str, text: &str) -> bool {
        let info = NarInfo::parse(text.as_bytes(), &StoreDir::default()).unwrap();
        let key: PublicKey = key.parse().unwrap();
        key.verifies(&info.fingerprint(), &info.signatures[0])
    }

    #[test]
    fn signatures_by_real_nix_are_valid() {
        for (key, text) in SIGNED {
            assert!(verifies(key, text), "{text}");
        }
    }

    #[test]
    fn a_signature_covers_path_hash_size_and_references_and_names_its_key() {
        let (key, text) = SIGNED[0];
        for (from, to) in [
            ("hello-2.10\nURL", "hello-2.11\nURL"),
            ("NarHash: sha256:1mi1", "NarHash: sha256:1mi2"),
            ("NarSize: 205968", "NarSize: 205969"),
            ("9df65igwjmf2wbw0gbrrgair6piqjgmi-glibc-2.31 ", ""),
            ("Sig: cache.nixos.org-1:uP5K", "Sig: cache.nixos.org-1:uP5L"),
            ("Sig: cache.nixos.org-1:", "Sig: cache.nixos.org-2:"),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(!verifies(key, &text.replace(from, to)), "{from}");
        }
        assert!(!verifies(SIGNED[2].0, text));
        // The signature does not cover the compression.
        assert!(verifies(key, &text.replace("Compression: xz", "Compression: zstd")));
    }

    #[test]
    fn an_error_quotes_the_invalid_key_or_signature() {
        for text in ["", "x", "x:", ":AAAA", "x:AAAA", "x:!!!!"] {
            assert!(text.parse::<PublicKey>().unwrap_err().to_string().contains(text));
            assert!(text.parse::<Signature>().unwrap_err().to_string().contains(text));
        }
        assert_eq!(NIXOS.parse::<PublicKey>().unwrap().to_string(), NIXOS);
    }
}
