//! Makes untrusted text safe to print.
//!
//! Text from a client, an upstream or a file can have any length and any characters. A line break can forge
//! a log line, an escape sequence can control the terminal, and a character that changes the direction of
//! text can make a name look like another one.

use std::borrow::Cow;

/// Whether a character is invisible, or changes how its neighbours look: control characters (including C1
/// and DEL), format characters (including those for the direction of text), and fillers that look like
/// spaces.
pub(super) fn is_invisible(character: char) -> bool {
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

/// Returns `text` on one line of at most `limit` bytes. Invisible characters are escaped, like `\u{202e}`.
/// A long text is cut in the middle, with a notice: an error says what is wrong at its beginning, and what
/// to do at its end.
pub(crate) fn printable(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit && !text.contains(is_invisible) {
        return Cow::Borrowed(text);
    }
    let (whole, consumed) = escape(text.chars(), limit);
    if consumed == text.len() {
        return Cow::Owned(whole.concat());
    }
    /// Length of the longest notice.
    const MAX_NOTICE: usize = " … (18446744073709551615 bytes omitted) … ".len();
    let room = limit.saturating_sub(MAX_NOTICE);
    let (head, before) = escape(text.chars(), room - room / 4);
    let (mut tail, after) = escape(text[before..].chars().rev(), room / 4);
    tail.reverse();
    let omitted = text.len() - before - after;
    let notice = format!(" … ({omitted} bytes omitted) … ");
    Cow::Owned(format!("{}{notice}{}", head.concat(), tail.concat()))
}

/// Escapes invisible characters. Returns as many characters as fit into `limit` bytes, and the number of
/// bytes of the text that they replace.
fn escape(characters: impl Iterator<Item = char>, limit: usize) -> (Vec<String>, usize) {
    let (mut escaped, mut length, mut consumed) = (Vec::new(), 0, 0);
    for character in characters {
        let one = match is_invisible(character) {
            true => character.escape_unicode().to_string(),
            false => character.to_string(),
        };
        length += one.len();
        if length > limit {
            break;
        }
        consumed += character.len_utf8();
        escaped.push(one);
    }
    (escaped, consumed)
}

/// Escapes the invisible characters in a JSON document. The document stays equivalent, because it has such
/// characters only in strings.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    let is_raw =
        |character: char| is_invisible(character) && !matches!(character, '\n' | '\r' | '\t');
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
    fn visible_text_is_unchanged() {
        let plain = "the narinfo’s URL is “ä/日本語”; it must be nar/…";
        assert!(matches!(printable(plain, 100), Cow::Borrowed(text) if text == plain));
        assert!(matches!(printable_json("{\n\t\"a\": \"ä\"\n}"), Cow::Borrowed(_)));
    }

    #[test]
    fn invisible_characters_are_escaped() {
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
    fn long_text_is_cut_in_the_middle_with_a_notice() {
        let text = format!("the URL is “{}”; it must be another one", "x".repeat(1_000_000));
        let cut = printable(&text, 300);
        assert!(cut.len() <= 300 && cut.len() > 250, "{cut}");
        assert!(cut.starts_with("the URL is “xxx"), "{cut}");
        assert!(cut.ends_with("xxx”; it must be another one"), "{cut}");
        assert!(cut.contains("x … (999"), "{cut}");
        // The notice is there even if it does not fit into the limit.
        assert!(printable(&text, 10).contains("bytes omitted"));
    }

    #[test]
    fn escaping_does_not_change_the_meaning_of_json() {
        let value = serde_json::json!({"a\u{7f}": "b\u{9b}\u{202e}\u{e0041}\n\u{1b}", "ä": "日"});
        let json = serde_json::to_string(&value).unwrap();
        let printable = printable_json(&json);
        assert!(!printable.contains(is_invisible), "{printable}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printable).unwrap(), value);
    }

    proptest! {
        #[test]
        fn any_text_is_one_bounded_line(text in "(?s).{0,400}", limit in 60_usize..500) {
            let line = printable(&text, limit);
            prop_assert!(line.len() <= limit);
            prop_assert!(!line.contains(is_invisible));
        }
    }
}
