//! Nix's base 32 (`doc/manual/source/protocols/nix32.md`).
//!
//! The alphabet has no `e`, `o`, `t` and `u`; the groups of five bits are read from the last byte
//! backwards. This is the encoding of RFC 4648 with the least significant bit of each byte first and the
//! text reversed, so the maintained crate `data-encoding` can do it. The crates for nix32 (`nix-base32`,
//! `nix-compat`) are unmaintained, or part of a store implementation under the GPL.

use std::sync::LazyLock;

use data_encoding::{BitOrder, Encoding, Specification};

/// The 32 characters, in the order of their values.
pub const ALPHABET: &str = "0123456789abcdfghijklmnpqrsvwxyz";

static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str(ALPHABET);
    specification.bit_order = BitOrder::LeastSignificantFirst;
    specification.encoding().expect("32 distinct ASCII symbols make an encoding")
});

/// Encodes `bytes` as `ceil(8 × length / 5)` characters.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = vec![0; ENCODING.encode_len(bytes.len())];
    ENCODING.encode_mut(bytes, &mut text);
    text.reverse();
    String::from_utf8(text).expect("the alphabet is ASCII")
}

/// Decodes `N` bytes, at most 40. Returns `None` if a character or the length is wrong, or if unused bits
/// are not zero: each byte string has exactly one encoding.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Each narinfo request is decoded here, so nothing is allocated.
    let mut reversed = [0; 64];
    let reversed = reversed.get_mut(..text.len())?;
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    reversed.copy_from_slice(text.as_bytes());
    reversed.reverse();
    let mut bytes = [0; N];
    ENCODING.decode_mut(reversed, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encoding_is_that_of_nix_hash() {
        // `nix-hash --type sha256 --to-base32`
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let bytes = data_encoding::HEXLOWER.decode(hello.as_bytes()).unwrap();
        let text = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic";
        assert_eq!(encode(&bytes), text);
        assert_eq!(decode::<32>(text).unwrap().as_slice(), bytes);
    }

    #[test]
    fn texts_that_nix_never_writes_are_invalid() {
        for text in [
            "",
            "e94qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
            "094QIF9N4CQ4FDG459QZBHG1C6WYWAWWAAIVX0K0X8XHBYX4VWIC",
            "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwi",
            // 260 bits, of which the upper four are not zero.
            "z94qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
        ] {
            assert_eq!(decode::<32>(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn bytes_survive_the_round_trip(bytes: [u8; 32], short: [u8; 20]) {
            prop_assert_eq!(decode::<32>(&encode(&bytes)), Some(bytes));
            prop_assert_eq!(decode::<20>(&encode(&short)), Some(short));
        }

        #[test]
        fn text_survives_the_round_trip(text in "[0-9a-df-np-sv-z]{32}") {
            prop_assert_eq!(encode(&decode::<20>(&text).unwrap()), text);
        }
    }
}
