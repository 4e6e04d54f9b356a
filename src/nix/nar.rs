//! The NAR format (Nix's `doc/manual/source/protocols/nix-archive.md`), checked while it streams.
//!
//! The crate `nix-nar` reads NARs from a blocking reader and hands out their files; a cache wants
//! neither: it pushes whatever bytes have come, in constant memory, and wants to know whether Nix
//! would take them. Names must be sorted, unique and harmless, because `nix-store --restore` refuses
//! or, in old versions, misuses others.

use thiserror::Error;

/// What makes bytes something else than a NAR.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NarError {
    /// Another word was due.
    #[error("at byte {at} of the unpacked NAR there is not {expected}")]
    Unexpected {
        /// Where, in bytes from its beginning.
        at: u64,
        /// What was due there.
        expected: &'static str,
    },
    /// A text that is longer than any that Nix writes.
    #[error("at byte {at} of the unpacked NAR there is a text of {length} bytes")]
    TooLong {
        /// Where, in bytes from its beginning.
        at: u64,
        /// How long it claims to be.
        length: u64,
    },
    /// A name that no file can have.
    #[error("the NAR has a file named “{0}”")]
    Name(String),
    /// A name that does not come after the one before it.
    #[error("the NAR's file “{name}” comes after “{after}”: names must be sorted, each once")]
    Order {
        /// The name.
        name: String,
        /// The one before it.
        after: String,
    },
    /// Directories inside directories without end.
    #[error("the NAR has directories nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// The end came too early.
    #[error("the NAR ends after {0} bytes, in the middle")]
    Unfinished(u64),
    /// The end did not come.
    #[error("the NAR goes on after its end, at byte {0}")]
    Trailing(u64),
}

/// Paths have 4096 bytes at most on Linux, so real trees are never deeper.
const MAX_DEPTH: usize = 2048;

/// The longest symlink target on Linux; names are shorter.
const MAX_TEXT: u64 = 4095;

/// What is due next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Magic,
    NodeOpen,
    TypeKey,
    Type,
    /// In a regular file, before the mark of an executable or the contents.
    FileField,
    ExecutableMark,
    /// In an executable file, before the contents.
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

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// The length of a text: so many of its 8 bytes are here.
    Length(usize),
    /// A text that is kept.
    Text { length: u64 },
    /// The contents of a file, which are not.
    Contents { rest: u64, padding: usize },
    /// Zeros up to a multiple of 8.
    Padding(usize),
}

/// What a NAR holds, told in the order in which it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// What comes next has this name in the directory that is open.
    Name(Vec<u8>),
    /// A directory opens.
    Directory,
    /// The directory that was opened last ends.
    DirectoryEnd,
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Whether it can be run.
        executable: bool,
    },
    /// A symlink to this.
    Symlink(Vec<u8>),
}

/// Checks a NAR that is pushed into it piece by piece.
#[derive(Debug)]
pub struct NarChecker {
    due: Due,
    part: Part,
    /// The length or the text that is being read.
    buffer: Vec<u8>,
    /// For each open directory, the last name in it.
    directories: Vec<Vec<u8>>,
    at: u64,
    /// Whether the file that is being read can be run.
    executable: bool,
    /// What was seen since somebody asked; none where nobody will.
    seen: Option<Vec<Seen>>,
}

impl Default for NarChecker {
    fn default() -> Self {
        Self {
            due: Due::Magic,
            part: Part::Length(0),
            buffer: Vec::new(),
            directories: Vec::new(),
            at: 0,
            executable: false,
            seen: None,
        }
    }
}

impl NarChecker {
    /// One that also tells what it sees.
    pub fn telling() -> Self {
        Self { seen: Some(Vec::new()), ..Self::default() }
    }

    /// What was seen since the last time that this was called.
    pub fn take_seen(&mut self) -> Vec<Seen> {
        self.seen.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn see(&mut self, seen: impl FnOnce() -> Seen) {
        if let Some(list) = &mut self.seen {
            list.push(seen());
        }
    }

    fn see_file(&mut self, size: u64) {
        let executable = self.executable;
        self.see(|| Seen::File { size, executable });
    }

    /// Takes the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            if self.is_whole() {
                return Err(NarError::Trailing(self.at));
            }
            let taken = self.step(bytes)?;
            self.at += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Says whether what was pushed is a whole NAR.
    pub fn finish(&self) -> Result<(), NarError> {
        if self.is_whole() { Ok(()) } else { Err(NarError::Unfinished(self.at)) }
    }

    /// Whether the last text and its padding are here.
    fn is_whole(&self) -> bool {
        self.due == Due::End && !matches!(self.part, Part::Padding(_))
    }

    /// Takes what belongs to one part, and returns how much that was.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, NarError> {
        match self.part {
            Part::Length(have) => {
                let take = bytes.len().min(8 - have);
                self.buffer.extend_from_slice(&bytes[..take]);
                match <[u8; 8]>::try_from(self.buffer.as_slice()) {
                    Ok(length) => {
                        self.buffer.clear();
                        self.begin(u64::from_le_bytes(length))?;
                    }
                    Err(_) => self.part = Part::Length(have + take),
                }
                Ok(take)
            }
            Part::Text { length } => {
                // At most `MAX_TEXT`, so it fits.
                let take = bytes.len().min(length as usize - self.buffer.len());
                self.buffer.extend_from_slice(&bytes[..take]);
                if self.buffer.len() as u64 == length {
                    self.end_of_text()?;
                }
                Ok(take)
            }
            Part::Contents { rest, padding } => {
                let take = usize::try_from(rest).unwrap_or(usize::MAX).min(bytes.len());
                let rest = rest - take as u64;
                self.part = Part::Contents { rest, padding };
                if rest == 0 {
                    self.due = Due::NodeClose;
                    self.pad(padding);
                }
                Ok(take)
            }
            Part::Padding(rest) => {
                let take = bytes.len().min(rest);
                if bytes[..take].iter().any(|byte| *byte != 0) {
                    return Err(NarError::Unexpected {
                        at: self.at,
                        expected: "a padding of zeros",
                    });
                }
                self.pad(rest - take);
                Ok(take)
            }
        }
    }

    /// A text of this length begins.
    fn begin(&mut self, length: u64) -> Result<(), NarError> {
        let padding = (length.wrapping_neg() % 8) as usize;
        if self.due == Due::Contents {
            self.see_file(length);
            if length == 0 {
                self.due = Due::NodeClose;
                self.pad(0);
            } else {
                self.part = Part::Contents { rest: length, padding };
            }
        } else if length > MAX_TEXT {
            return Err(NarError::TooLong { at: self.at, length });
        } else if length == 0 {
            self.end_of_text()?;
        } else {
            self.part = Part::Text { length };
        }
        Ok(())
    }

    fn pad(&mut self, rest: usize) {
        self.part = if rest == 0 { Part::Length(0) } else { Part::Padding(rest) };
    }

    fn end_of_text(&mut self) -> Result<(), NarError> {
        let text = std::mem::take(&mut self.buffer);
        self.due = self.after(&text)?;
        self.pad(text.len().wrapping_neg() % 8);
        self.buffer = text;
        self.buffer.clear();
        Ok(())
    }

    /// What is due after this text.
    fn after(&mut self, text: &[u8]) -> Result<Due, NarError> {
        let word = |expected: &'static str, next: Due| {
            if text == expected.as_bytes() {
                Ok(next)
            } else {
                Err(NarError::Unexpected { at: self.at, expected })
            }
        };
        let not = |expected| Err(NarError::Unexpected { at: self.at, expected });
        match self.due {
            Due::Magic => word("nix-archive-1", Due::NodeOpen),
            Due::NodeOpen => word("(", Due::TypeKey),
            Due::TypeKey => word("type", Due::Type),
            Due::Type => match text {
                b"regular" => {
                    self.executable = false;
                    Ok(Due::FileField)
                }
                b"symlink" => Ok(Due::TargetKey),
                b"directory" if self.directories.len() >= MAX_DEPTH => Err(NarError::TooDeep),
                b"directory" => {
                    self.directories.push(Vec::new());
                    self.see(|| Seen::Directory);
                    Ok(Due::EntryOrClose)
                }
                _ => not("regular, symlink or directory"),
            },
            Due::FileField => match text {
                b"executable" => {
                    self.executable = true;
                    Ok(Due::ExecutableMark)
                }
                b"contents" => Ok(Due::Contents),
                b")" => Ok(self.after_empty_file()),
                _ => not("executable, contents or )"),
            },
            Due::ExecutableMark => word("", Due::ExecutableField),
            Due::ExecutableField => match text {
                b"contents" => Ok(Due::Contents),
                b")" => Ok(self.after_empty_file()),
                _ => not("contents or )"),
            },
            Due::TargetKey => word("target", Due::Target),
            Due::Target if text.is_empty() || text.contains(&0) => not("a symlink's target"),
            Due::Target => {
                self.see(|| Seen::Symlink(text.to_vec()));
                Ok(Due::NodeClose)
            }
            Due::NodeClose => word(")", Due::End).map(|_| self.after_node()),
            Due::EntryOrClose => match text {
                b"entry" => Ok(Due::EntryOpen),
                b")" => {
                    self.directories.pop();
                    self.see(|| Seen::DirectoryEnd);
                    Ok(self.after_node())
                }
                _ => not("entry or )"),
            },
            Due::EntryOpen => word("(", Due::NameKey),
            Due::NameKey => word("name", Due::Name),
            Due::Name => self.name(text).map(|()| Due::NodeKey),
            Due::NodeKey => word("node", Due::NodeOpen),
            Due::EntryClose => word(")", Due::EntryOrClose),
            Due::Contents | Due::End => not("anything"),
        }
    }

    fn after_empty_file(&mut self) -> Due {
        self.see_file(0);
        self.after_node()
    }

    fn after_node(&self) -> Due {
        if self.directories.is_empty() { Due::End } else { Due::EntryClose }
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
        self.see(|| Seen::Name(name.to_vec()));
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
    fn every_kind_of_file_is_taken_in_pieces_of_any_size() {
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
    fn what_it_sees_is_told_in_order() {
        let name = |name: &str| Seen::Name(name.into());
        let file = |size, executable| Seen::File { size, executable };
        let tree = [
            Seen::Directory,
            name("a"),
            file(5, false),
            name("b"),
            Seen::Directory,
            name("x"),
            Seen::Symlink("../a".into()),
            Seen::DirectoryEnd,
            name("c"),
            file(0, true),
            name("d"),
            file(0, false),
            Seen::DirectoryEnd,
        ];
        let end = " ) ) )";
        let text = TREE.strip_suffix(end).unwrap();
        let bytes = words(&format!("{text} ) ) entry ( name d node ( type regular{end}"));
        for size in [1, 8, bytes.len()] {
            let mut checker = NarChecker::telling();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                checker.push(piece).unwrap();
                seen.extend(checker.take_seen());
            }
            checker.finish().unwrap();
            assert_eq!(seen, tree);
        }
        let mut silent = NarChecker::default();
        silent.push(&bytes).unwrap();
        assert_eq!(silent.take_seen(), []);
    }

    #[test]
    fn what_nix_would_not_restore_is_refused() {
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
    fn every_cut_and_every_addition_is_noticed() {
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
    fn a_text_without_end_is_not_waited_for() {
        let mut bytes = words("nix-archive-1");
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(check(&bytes), Err(NarError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_checker(pieces: Vec<Vec<u8>>) {
            let mut checker = NarChecker::default();
            for piece in pieces {
                if checker.push(&piece).is_err() {
                    break;
                }
            }
        }

        #[test]
        fn words_in_any_order_never_break_it(order in proptest::collection::vec(0usize..14, 0..60)) {
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
