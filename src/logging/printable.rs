//! Makes external text safe to print.
//!
//! Text of a client, an upstream or a file can have any length and any characters: a line break
//! forges a log line, an escape sequence controls the terminal, and a character that changes the
//! direction of text makes a name look like another one.

use std::borrow::Cow;

/// Whether a character is not seen where it stands, or changes how what is beside it is seen:
/// control characters (with C1 and DEL), format characters (with those for the direction of
/// writing), and fillers that look like spaces.
pub fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
                | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}' | '\u{13430}'..='\u{1345f}' | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// `text` on one line of at most `limit` bytes: characters that are not seen are spelled out, like
/// `\u{202e}`. What is too long is cut in the middle, which says so, because what is wrong is told
/// at the beginning and what to do at the end.
pub fn printable(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit && !text.contains(is_unseen) {
        return Cow::Borrowed(text);
    }
    let (whole, taken) = spelled_out(text.chars(), limit);
    if taken == text.len() {
        return Cow::Owned(whole.concat());
    }
    /// The longest that is said of what is left out.
    const NOTICE: usize = " … (18446744073709551615 bytes omitted) … ".len();
    let room = limit.saturating_sub(NOTICE);
    let (head, before) = spelled_out(text.chars(), room - room / 4);
    let (mut tail, after) = spelled_out(text[before..].chars().rev(), room / 4);
    tail.reverse();
    let left_out = text.len() - before - after;
    let notice = format!(" … ({left_out} bytes omitted) … ");
    Cow::Owned(format!("{}{notice}{}", head.concat(), tail.concat()))
}

/// As many of the characters as fit, spelled out where they are not seen, and how many bytes of the
/// text they are.
fn spelled_out(characters: impl Iterator<Item = char>, limit: usize) -> (Vec<String>, usize) {
    let (mut spelled, mut length, mut taken) = (Vec::new(), 0, 0);
    for character in characters {
        let one = match is_unseen(character) {
            true => character.escape_unicode().to_string(),
            false => character.to_string(),
        };
        length += one.len();
        if length > limit {
            break;
        }
        taken += character.len_utf8();
        spelled.push(one);
    }
    (spelled, taken)
}

/// A JSON document in which characters that are not seen are escaped. It is the same document: they
/// only stand in strings.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let is_raw = |character: char| is_unseen(character) && !matches!(character, '\n' | '\r' | '\t');
    if !json.contains(is_raw) {
        return Cow::Borrowed(json);
    }
    let mut printable = String::with_capacity(json.len() + 64);
    for character in json.chars() {
        if is_raw(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                printable.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            printable.push(character);
        }
    }
    Cow::Owned(printable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_seen_stays_as_it_is() {
        let plain = "the narinfo’s URL is “ä/日本語”; it must be nar/…";
        assert!(matches!(printable(plain, 100), Cow::Borrowed(text) if text == plain));
        assert!(matches!(printable_json("{\n\t\"a\": \"ä\"\n}"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_not_seen_is_spelled_out() {
        assert_eq!(
            printable("a\r\n\tb\u{7f}\u{1b}[0m", 100),
            "a\\u{d}\\u{a}\\u{9}b\\u{7f}\\u{1b}[0m"
        );
        assert_eq!(
            printable("\u{9b}\u{85}\u{202e}\u{2066}\u{feff}\u{3164}", 100),
            "\\u{9b}\\u{85}\\u{202e}\\u{2066}\\u{feff}\\u{3164}"
        );
    }

    #[test]
    fn what_is_too_long_is_cut_in_the_middle_and_says_so() {
        let text = format!("the URL is “{}”; it must be another one", "x".repeat(1_000_000));
        let cut = printable(&text, 300);
        assert!(cut.len() <= 300 && cut.len() > 250, "{cut}");
        assert!(cut.starts_with("the URL is “xxx"), "{cut}");
        assert!(cut.ends_with("xxx”; it must be another one"), "{cut}");
        assert!(cut.contains("x … (999"), "{cut}");
        // Even where there is no room for what is to be said.
        assert!(printable(&text, 10).contains("bytes omitted"));
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"a\u{7f}": "b\u{9b}\u{202e}\u{e0041}\n\u{1b}", "ä": "日"});
        let json = serde_json::to_string(&value).unwrap();
        let printable = printable_json(&json);
        assert!(!printable.contains(is_unseen), "{printable}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printable).unwrap(), value);
    }

    proptest! {
        #[test]
        fn any_text_is_one_bounded_line(text in "(?s).{0,400}", limit in 60_usize..500) {
            let line = printable(&text, limit);
            prop_assert!(line.len() <= limit);
            prop_assert!(!line.contains(is_unseen));
        }
    }
}
