//! Validates a NAR while it streams (Nix's `doc/manual/source/protocols/nix-archive.md`).
//!
//! The crate `nix-nar` reads NARs from a blocking reader and returns their files. A cache has to accept
//! bytes as they arrive, in constant memory, and only needs to know whether Nix would accept them. Names
//! must be sorted, unique and without `/`, because `nix-store --restore` refuses other names, and old
//! versions restore them to wrong places.

use thiserror::Error;

/// Error for bytes that are not a NAR.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NarError {
    /// An unexpected string.
    #[error("at byte {at} of the unpacked NAR, expected {expected}")]
    Unexpected {
        /// Offset in the NAR.
        at: u64,
        /// The strings that would be valid there.
        expected: &'static str,
    },
    /// A string that is longer than any string that Nix writes.
    #[error("at byte {at} of the unpacked NAR there is a string of {length} bytes")]
    TooLong {
        /// Offset in the NAR.
        at: u64,
        /// Stated length of the string, in bytes.
        length: u64,
    },
    /// An invalid file name.
    #[error("the NAR has a file with the invalid name “{0}”")]
    Name(String),
    /// A file name that is not greater than the previous name in its directory.
    #[error("the file “{name}” in the NAR comes after “{after}”: names must be sorted and unique")]
    Order {
        /// The name.
        name: String,
        /// The previous name.
        after: String,
    },
    /// More than 2,048 nested directories.
    #[error("the NAR has directories nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// The bytes ended before the NAR did.
    #[error("the NAR ends after {0} bytes, in the middle")]
    Unfinished(u64),
    /// Bytes after the end of the NAR.
    #[error("the NAR goes on after its end, at byte {0}")]
    Trailing(u64),
}

/// Maximum depth of directories. A path has at most 4096 bytes on Linux, so real trees are never deeper.
const MAX_DEPTH: usize = 2048;

/// Maximum length of a string, in bytes: the longest symlink target on Linux. File names are shorter.
const MAX_TEXT: u64 = 4095;

/// What the grammar expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Magic,
    NodeOpen,
    TypeKey,
    Type,
    /// In a regular file: `executable`, `contents` or the end.
    FileField,
    /// The empty string after `executable`.
    ExecutableMark,
    /// In an executable file: `contents` or the end.
    ExecutableField,
    Contents,
    TargetKey,
    Target,
    NodeClose,
    EntryOrClose,
    EntryOpen,
    NameKey,
    Name,
    NodeKey,
    EntryClose,
    End,
}

/// The part of the format that the next byte belongs to.
#[derive(Debug, Clone, Copy)]
enum NarPart {
    /// The 8 bytes of the length of a string, of which this number has arrived.
    Length(usize),
    /// A string, which is buffered.
    Text { length: u64 },
    /// The contents of a file, which are not buffered.
    Contents { rest: u64, padding: usize },
    /// Zeros up to a multiple of 8.
    Padding(usize),
}

/// An event while a NAR is read. Events come in the order of the NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NarEvent {
    /// Name of the next entry in the innermost open directory.
    Name(Vec<u8>),
    /// A directory begins.
    Directory,
    /// The innermost open directory ends.
    DirectoryEnd,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Whether the file is executable.
        executable: bool,
    },
    /// A symlink with this target.
    Symlink(Vec<u8>),
}

/// Validates a NAR that is pushed in pieces of any size.
#[derive(Debug)]
pub struct NarChecker {
    expected: Expected,
    part: NarPart,
    /// The length or string that is being read.
    buffer: Vec<u8>,
    /// For each open directory, the last name in it.
    directories: Vec<Vec<u8>>,
    /// Number of bytes so far.
    at: u64,
    /// Whether the current file is executable.
    executable: bool,
    /// Events since the last call of `take_events`; `None`: events are not recorded.
    events: Option<Vec<NarEvent>>,
}

impl Default for NarChecker {
    fn default() -> Self {
        Self {
            expected: Expected::Magic,
            part: NarPart::Length(0),
            buffer: Vec::new(),
            directories: Vec::new(),
            at: 0,
            executable: false,
            events: None,
        }
    }
}

impl NarChecker {
    /// Creates a checker that records events.
    pub fn with_events() -> Self {
        Self { events: Some(Vec::new()), ..Self::default() }
    }

    /// Returns the events since the last call; none without [`NarChecker::with_events`].
    pub fn take_events(&mut self) -> Vec<NarEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn record(&mut self, event: impl FnOnce() -> NarEvent) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }

    fn record_file(&mut self, size: u64) {
        let executable = self.executable;
        self.record(|| NarEvent::File { size, executable });
    }

    /// Validates the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            if self.is_whole() {
                return Err(NarError::Trailing(self.at));
            }
            let consumed = self.step(bytes)?;
            self.at += consumed as u64;
            bytes = &bytes[consumed..];
        }
        Ok(())
    }

    /// Returns an error if the bytes so far are not a complete NAR.
    pub fn finish(&self) -> Result<(), NarError> {
        if self.is_whole() { Ok(()) } else { Err(NarError::Unfinished(self.at)) }
    }

    /// Whether the last string and its padding have arrived.
    fn is_whole(&self) -> bool {
        self.expected == Expected::End && !matches!(self.part, NarPart::Padding(_))
    }

    /// Consumes bytes of one part, and returns how many it consumed.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, NarError> {
        match self.part {
            NarPart::Length(have) => {
                let take = bytes.len().min(8 - have);
                self.buffer.extend_from_slice(&bytes[..take]);
                match <[u8; 8]>::try_from(self.buffer.as_slice()) {
                    Ok(length) => {
                        self.buffer.clear();
                        self.begin(u64::from_le_bytes(length))?;
                    }
                    Err(_) => self.part = NarPart::Length(have + take),
                }
                Ok(take)
            }
            NarPart::Text { length } => {
                // At most `MAX_TEXT`, so it fits.
                let take = bytes.len().min(length as usize - self.buffer.len());
                self.buffer.extend_from_slice(&bytes[..take]);
                if self.buffer.len() as u64 == length {
                    self.end_of_text()?;
                }
                Ok(take)
            }
            NarPart::Contents { rest, padding } => {
                let take = usize::try_from(rest).unwrap_or(usize::MAX).min(bytes.len());
                let rest = rest - take as u64;
                self.part = NarPart::Contents { rest, padding };
                if rest == 0 {
                    self.expected = Expected::NodeClose;
                    self.pad(padding);
                }
                Ok(take)
            }
            NarPart::Padding(rest) => {
                let take = bytes.len().min(rest);
                if bytes[..take].iter().any(|byte| *byte != 0) {
                    return Err(NarError::Unexpected { at: self.at, expected: "zeros as padding" });
                }
                self.pad(rest - take);
                Ok(take)
            }
        }
    }

    /// Begins a string of this length.
    fn begin(&mut self, length: u64) -> Result<(), NarError> {
        let padding = (length.wrapping_neg() % 8) as usize;
        if self.expected == Expected::Contents {
            self.record_file(length);
            if length == 0 {
                self.expected = Expected::NodeClose;
                self.pad(0);
            } else {
                self.part = NarPart::Contents { rest: length, padding };
            }
        } else if length > MAX_TEXT {
            return Err(NarError::TooLong { at: self.at, length });
        } else if length == 0 {
            self.end_of_text()?;
        } else {
            self.part = NarPart::Text { length };
        }
        Ok(())
    }

    fn pad(&mut self, rest: usize) {
        self.part = if rest == 0 { NarPart::Length(0) } else { NarPart::Padding(rest) };
    }

    fn end_of_text(&mut self) -> Result<(), NarError> {
        let text = std::mem::take(&mut self.buffer);
        self.expected = self.after(&text)?;
        self.pad(text.len().wrapping_neg() % 8);
        self.buffer = text;
        self.buffer.clear();
        Ok(())
    }

    /// Returns what the grammar expects after this string.
    fn after(&mut self, text: &[u8]) -> Result<Expected, NarError> {
        let word = |expected: &'static str, next: Expected| {
            if text == expected.as_bytes() {
                Ok(next)
            } else {
                Err(NarError::Unexpected { at: self.at, expected })
            }
        };
        let not = |expected| Err(NarError::Unexpected { at: self.at, expected });
        match self.expected {
            Expected::Magic => word("nix-archive-1", Expected::NodeOpen),
            Expected::NodeOpen => word("(", Expected::TypeKey),
            Expected::TypeKey => word("type", Expected::Type),
            Expected::Type => match text {
                b"regular" => {
                    self.executable = false;
                    Ok(Expected::FileField)
                }
                b"symlink" => Ok(Expected::TargetKey),
                b"directory" if self.directories.len() >= MAX_DEPTH => Err(NarError::TooDeep),
                b"directory" => {
                    self.directories.push(Vec::new());
                    self.record(|| NarEvent::Directory);
                    Ok(Expected::EntryOrClose)
                }
                _ => not("regular, symlink or directory"),
            },
            Expected::FileField => match text {
                b"executable" => {
                    self.executable = true;
                    Ok(Expected::ExecutableMark)
                }
                b"contents" => Ok(Expected::Contents),
                b")" => Ok(self.after_empty_file()),
                _ => not("executable, contents or )"),
            },
            Expected::ExecutableMark => word("", Expected::ExecutableField),
            Expected::ExecutableField => match text {
                b"contents" => Ok(Expected::Contents),
                b")" => Ok(self.after_empty_file()),
                _ => not("contents or )"),
            },
            Expected::TargetKey => word("target", Expected::Target),
            Expected::Target if text.is_empty() || text.contains(&0) => {
                not("the target of a symlink")
            }
            Expected::Target => {
                self.record(|| NarEvent::Symlink(text.to_vec()));
                Ok(Expected::NodeClose)
            }
            Expected::NodeClose => word(")", Expected::End).map(|_| self.after_node()),
            Expected::EntryOrClose => match text {
                b"entry" => Ok(Expected::EntryOpen),
                b")" => {
                    self.directories.pop();
                    self.record(|| NarEvent::DirectoryEnd);
                    Ok(self.after_node())
                }
                _ => not("entry or )"),
            },
            Expected::EntryOpen => word("(", Expected::NameKey),
            Expected::NameKey => word("name", Expected::Name),
            Expected::Name => self.name(text).map(|()| Expected::NodeKey),
            Expected::NodeKey => word("node", Expected::NodeOpen),
            Expected::EntryClose => word(")", Expected::EntryOrClose),
            Expected::Contents | Expected::End => not("no string"),
        }
    }

    fn after_empty_file(&mut self) -> Expected {
        self.record_file(0);
        self.after_node()
    }

    fn after_node(&self) -> Expected {
        if self.directories.is_empty() { Expected::End } else { Expected::EntryClose }
    }

    fn name(&mut self, name: &[u8]) -> Result<(), NarError> {
        let text = || String::from_utf8_lossy(name).into_owned();
        if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(NarError::Name(text()));
        }
        let Some(last) = self.directories.last_mut() else {
            return Err(NarError::Name(text()));
        };
        if name <= last.as_slice() {
            let after = String::from_utf8_lossy(last).into_owned();
            return Err(NarError::Order { name: text(), after });
        }
        name.clone_into(last);
        self.record(|| NarEvent::Name(name.to_vec()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nar(words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in words {
            bytes.extend_from_slice(&(word.len() as u64).to_le_bytes());
            bytes.extend_from_slice(word);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn words(text: &str) -> Vec<u8> {
        let words: Vec<&[u8]> =
            text.split(' ').map(|word| if word == "-" { b"" } else { word.as_bytes() }).collect();
        nar(&words)
    }

    fn check(bytes: &[u8]) -> Result<(), NarError> {
        let mut checker = NarChecker::default();
        checker.push(bytes)?;
        checker.finish()
    }

    const TREE: &str = "nix-archive-1 ( type directory \
        entry ( name a node ( type regular contents hello ) ) \
        entry ( name b node ( type directory entry ( name x node ( type symlink target ../a ) ) ) ) \
        entry ( name c node ( type regular executable - contents - ) ) )";

    #[test]
    fn every_kind_of_file_is_valid_in_pieces_of_any_size() {
        let bytes = words(TREE);
        for size in [1, 2, 7, 8, 9, 100, bytes.len()] {
            let mut checker = NarChecker::default();
            for piece in bytes.chunks(size) {
                assert!(checker.finish().is_err());
                checker.push(piece).unwrap();
            }
            checker.finish().unwrap();
        }
        assert_eq!(check(&words("nix-archive-1 ( type regular contents x )")), Ok(()));
        assert_eq!(check(&words("nix-archive-1 ( type symlink target /x )")), Ok(()));
        assert_eq!(check(&words("nix-archive-1 ( type directory )")), Ok(()));
    }

    #[test]
    fn events_come_in_the_order_of_the_nar() {
        let name = |name: &str| NarEvent::Name(name.into());
        let file = |size, executable| NarEvent::File { size, executable };
        let tree = [
            NarEvent::Directory,
            name("a"),
            file(5, false),
            name("b"),
            NarEvent::Directory,
            name("x"),
            NarEvent::Symlink("../a".into()),
            NarEvent::DirectoryEnd,
            name("c"),
            file(0, true),
            name("d"),
            file(0, false),
            NarEvent::DirectoryEnd,
        ];
        let end = " ) ) )";
        let text = TREE.strip_suffix(end).unwrap();
        let bytes = words(&format!("{text} ) ) entry ( name d node ( type regular{end}"));
        for size in [1, 8, bytes.len()] {
            let mut checker = NarChecker::with_events();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                checker.push(piece).unwrap();
                seen.extend(checker.take_events());
            }
            checker.finish().unwrap();
            assert_eq!(seen, tree);
        }
        let mut silent = NarChecker::default();
        silent.push(&bytes).unwrap();
        assert_eq!(silent.take_events(), []);
    }

    #[test]
    fn names_that_nix_does_not_restore_are_refused() {
        let entry = |names: &[&str]| {
            let entries: Vec<String> = names
                .iter()
                .map(|name| format!("entry ( name {name} node ( type regular contents x ) )"))
                .collect();
            check(&words(&format!("nix-archive-1 ( type directory {} )", entries.join(" "))))
        };
        assert_eq!(entry(&["a", "b"]), Ok(()));
        for names in [&[".."][..], &["."], &["-"], &["a/b"], &["a\0"]] {
            assert!(matches!(entry(names), Err(NarError::Name(_))), "{names:?}");
        }
        for names in [&["b", "a"][..], &["a", "a"]] {
            assert!(matches!(entry(names), Err(NarError::Order { .. })), "{names:?}");
        }
        let deep = format!(
            "nix-archive-1 {}",
            "( type directory entry ( name a node ".repeat(MAX_DEPTH + 1)
        );
        assert_eq!(check(&words(deep.trim_end())), Err(NarError::TooDeep));
    }

    #[test]
    fn truncated_nars_and_trailing_bytes_are_refused() {
        let bytes = words(TREE);
        for end in 0..bytes.len() {
            assert_eq!(check(&bytes[..end]), Err(NarError::Unfinished(end as u64)));
        }
        let longer = [bytes.as_slice(), b"\0"].concat();
        assert_eq!(check(&longer), Err(NarError::Trailing(bytes.len() as u64)));
        let mut padded = words("nix-archive-1 ( type regular contents hello )");
        let at = padded.windows(5).position(|five| five == b"hello").unwrap() + 5;
        padded[at] = 1;
        assert!(matches!(check(&padded), Err(NarError::Unexpected { .. })));
    }

    #[test]
    fn a_string_of_enormous_length_is_refused_at_once() {
        let mut bytes = words("nix-archive-1");
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(check(&bytes), Err(NarError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_checker_panic(pieces: Vec<Vec<u8>>) {
            let mut checker = NarChecker::default();
            for piece in pieces {
                if checker.push(&piece).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn no_order_of_keywords_makes_the_checker_panic(order in proptest::collection::vec(0usize..14, 0..60)) {
            let all = ["(", ")", "type", "regular", "symlink", "directory", "entry", "name", "node",
                "contents", "executable", "target", "", "a"];
            let mut bytes = words("nix-archive-1 ( type");
            for index in order {
                bytes.extend(nar(&[all[index].as_bytes()]));
            }
            let _ = check(&bytes);
        }
    }
}
