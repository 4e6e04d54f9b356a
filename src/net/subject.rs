//! The common name in a certificate, for the log.
//!
//! The certificate has been verified, so it has the format of RFC 5280.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// The tag of the version, which old certificates lack.
const VERSION: u8 = 0xa0;
/// `UTF8String`, `PrintableString` and `IA5String`, which are UTF-8.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// Returns the common name of the subject of a certificate.
pub(super) fn common_name(certificate: &[u8]) -> Option<&str> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut fields, _) = expect(SEQUENCE, certificate)?;
    if let Some((_, rest)) = expect(VERSION, fields) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        (_, _, fields) = element(fields)?;
    }
    let (mut names, _) = expect(SEQUENCE, fields)?;
    while let Some((mut set, rest)) = expect(SET, names) {
        while let Some((attribute, rest)) = expect(SEQUENCE, set) {
            let (kind, value) = expect(OBJECT_IDENTIFIER, attribute)?;
            let (tag, text, _) = element(value)?;
            if kind == COMMON_NAME && TEXTS.contains(&tag) {
                return std::str::from_utf8(text).ok();
            }
            set = rest;
        }
        names = rest;
    }
    None
}

/// Returns the content of the next element and the rest, or `None` if the element has another tag.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// Returns the tag and the content of the next element, and the rest.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let digits = digits.iter().copied().map(usize::from);
        (digits.fold(0, |length: usize, digit| length << 8 | digit), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element with this tag.
    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u8::try_from(content.len()).unwrap();
        let head = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [head, content].concat()
    }

    fn certificate(version: bool, names: &[(&[u8], &[u8])]) -> Vec<u8> {
        let names: Vec<Vec<u8>> = names
            .iter()
            .map(|(kind, text)| {
                let attribute = [der(OBJECT_IDENTIFIER, &[kind]), der(0x0c, &[text])].concat();
                der(SET, &[&der(SEQUENCE, &[&attribute])])
            })
            .collect();
        let version = if version { der(VERSION, &[&der(0x02, &[&[2]])]) } else { Vec::new() };
        let empty = der(SEQUENCE, &[]);
        let fields =
            [version, der(0x02, &[&[1]]), empty.repeat(3), der(SEQUENCE, &[&names.concat()])];
        der(SEQUENCE, &[&der(SEQUENCE, &[&fields.concat()])])
    }

    #[test]
    fn the_common_name_is_found_among_others() {
        const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
        let long = [b'x'; 90];
        for version in [true, false] {
            let names: [(&[u8], &[u8]); 2] =
                [(ORGANIZATION, b"some"), (&COMMON_NAME, b"builder-7")];
            assert_eq!(common_name(&certificate(version, &names)), Some("builder-7"));
            let names: [(&[u8], &[u8]); 1] = [(&COMMON_NAME, &long)];
            assert_eq!(common_name(&certificate(version, &names)).unwrap().len(), 90);
            assert_eq!(common_name(&certificate(version, &[(ORGANIZATION, b"some")])), None);
        }
    }

    #[test]
    fn a_truncated_certificate_has_no_name() {
        let whole = certificate(true, &[(&COMMON_NAME, b"builder")]);
        for length in 0..whole.len() {
            assert_eq!(common_name(&whole[..length]), None);
        }
        assert_eq!(common_name(&[0x30, 0xff, 1, 2, 3]), None);
        assert_eq!(common_name(&certificate(true, &[(&COMMON_NAME, b"\xff")])), None);
    }
}
