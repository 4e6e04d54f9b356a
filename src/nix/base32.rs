//! Nix's base 32 (`doc/manual/source/protocols/nix32.md`).
//!
//! The alphabet leaves out `e`, `o`, `t` and `u`; the groups of five bits are taken from the last
//! byte backwards. That is RFC 4648's scheme with the bits of each byte read from the least
//! significant end and the text reversed, so the well-kept `data-encoding` does the work here.
//! The crates made for it (`nix-base32`, `nix-compat`) are unmaintained, or a part of a
//! store implementation under the GPL.

use std::sync::LazyLock;

use data_encoding::{BitOrder, Encoding, Specification};

/// The alphabet, in order of value.
pub const ALPHABET: &str = "0123456789abcdfghijklmnpqrsvwxyz";

static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str(ALPHABET);
    specification.bit_order = BitOrder::LeastSignificantFirst;
    specification.encoding().expect("32 distinct ASCII symbols make an encoding")
});

/// The text for `bytes`, `ceil(8 × length / 5)` characters.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = vec![0; ENCODING.encode_len(bytes.len())];
    ENCODING.encode_mut(bytes, &mut text);
    text.reverse();
    String::from_utf8(text).expect("the alphabet is ASCII")
}

/// The `N` bytes that `text` stands for, at most 40, or none where a character, the length or the
/// unused bits are wrong. Only one text stands for any given bytes.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Every narinfo that is asked for comes through here, so nothing is allocated.
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
    fn agrees_with_nix() {
        // `nix-hash --type sha256 --to-base32`
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let bytes = data_encoding::HEXLOWER.decode(hello.as_bytes()).unwrap();
        let text = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic";
        assert_eq!(encode(&bytes), text);
        assert_eq!(decode::<32>(text).unwrap().as_slice(), bytes);
    }

    #[test]
    fn refuses_what_nix_never_writes() {
        for text in [
            "",
            "e94qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
            "094QIF9N4CQ4FDG459QZBHG1C6WYWAWWAAIVX0K0X8XHBYX4VWIC",
            "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwi",
            // 260 bits in which the upper four are not zero
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
