//! A simple parser and printer of NARs: recursive, with the whole NAR in memory, following the grammar in
//! Nix's `doc/manual/source/protocols/nix-archive.md`. `NarChecker`, which receives pieces and keeps nothing,
//! must agree with it on every input.

use arbitrary::{Arbitrary, Result, Unstructured};
use nix_stored::nix::nar::{NarChecker, NarError};

/// Maximum depth of directories.
const MAX_DEPTH: usize = 2048;

/// Maximum length of a string that is not the contents of a file, in bytes.
const MAX_TEXT: u64 = 4095;

/// A file of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Regular { executable: bool, contents: Option<Vec<u8>> },
    Symlink(Vec<u8>),
    Directory(Vec<(Vec<u8>, Node)>),
}

/// Pushes `bytes` in pieces of these sizes, and returns the result of `push` and `finish`.
pub fn check(
    bytes: &[u8],
    sizes: impl IntoIterator<Item = usize>,
) -> std::result::Result<(), NarError> {
    let mut checker = NarChecker::default();
    let mut rest = bytes;
    for size in sizes {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        checker.push(piece)?;
        rest = behind;
    }
    checker.push(rest)?;
    checker.finish()
}

/// An infinite sequence of sizes of pieces; none is zero.
pub fn sizes(seed: u64) -> impl Iterator<Item = usize> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Mostly about 8 bytes, to which everything is aligned, and sometimes many more.
        let limit = if state & 0x700 == 0 { 1024 } else { 24 };
        1 + (state >> 32) as usize % limit
    })
}

/// The NAR of a tree.
pub fn render(tree: &Node) -> Vec<u8> {
    let mut nar = Vec::new();
    text(&mut nar, b"nix-archive-1");
    node(&mut nar, tree);
    nar
}

fn words(nar: &mut Vec<u8>, words: &[&str]) {
    for word in words {
        text(nar, word.as_bytes());
    }
}

fn text(nar: &mut Vec<u8>, text: &[u8]) {
    nar.extend_from_slice(&(text.len() as u64).to_le_bytes());
    nar.extend_from_slice(text);
    nar.resize(nar.len().next_multiple_of(8), 0);
}

fn node(nar: &mut Vec<u8>, tree: &Node) {
    words(nar, &["(", "type"]);
    match tree {
        Node::Regular { executable, contents } => {
            words(nar, &["regular"]);
            if *executable {
                words(nar, &["executable", ""]);
            }
            if let Some(contents) = contents {
                words(nar, &["contents"]);
                text(nar, contents);
            }
        }
        Node::Symlink(target) => {
            words(nar, &["symlink", "target"]);
            text(nar, target);
        }
        Node::Directory(entries) => {
            words(nar, &["directory"]);
            for (name, entry) in entries {
                words(nar, &["entry", "(", "name"]);
                text(nar, name);
                words(nar, &["node"]);
                node(nar, entry);
                words(nar, &[")"]);
            }
        }
    }
    words(nar, &[")"]);
}

/// The tree in a NAR; `None` if the bytes are not exactly one NAR.
pub fn read(nar: &[u8]) -> Option<Node> {
    let mut reader = Reader { rest: nar };
    reader.word("nix-archive-1")?;
    reader.word("(")?;
    let tree = reader.node(0)?;
    reader.rest.is_empty().then_some(tree)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn text(&mut self, max: u64) -> Option<&'a [u8]> {
        let length = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        let text = self.take(Some(length).filter(|length| *length <= max)?)?;
        let padding = self.take((8 - length % 8) % 8)?;
        padding.iter().all(|byte| *byte == 0).then_some(text)
    }

    fn any_word(&mut self) -> Option<&'a [u8]> {
        self.text(MAX_TEXT)
    }

    fn word(&mut self, expected: &str) -> Option<()> {
        (self.any_word()? == expected.as_bytes()).then_some(())
    }

    /// Reads a node after its opening parenthesis.
    fn node(&mut self, depth: usize) -> Option<Node> {
        self.word("type")?;
        match self.any_word()? {
            b"regular" => self.regular(),
            b"symlink" => {
                self.word("target")?;
                let target = self.any_word()?;
                self.word(")")?;
                let plain = !target.is_empty() && !target.contains(&0);
                plain.then(|| Node::Symlink(target.to_vec()))
            }
            b"directory" if depth < MAX_DEPTH => self.directory(depth + 1),
            _ => None,
        }
    }

    fn regular(&mut self) -> Option<Node> {
        let mut word = self.any_word()?;
        let executable = word == b"executable";
        if executable {
            self.word("")?;
            word = self.any_word()?;
        }
        let contents = match word {
            b"contents" => {
                let contents = self.text(u64::MAX)?.to_vec();
                self.word(")")?;
                Some(contents)
            }
            b")" => None,
            _ => return None,
        };
        Some(Node::Regular { executable, contents })
    }

    fn directory(&mut self, depth: usize) -> Option<Node> {
        let mut entries: Vec<(Vec<u8>, Node)> = Vec::new();
        loop {
            match self.any_word()? {
                b")" => return Some(Node::Directory(entries)),
                b"entry" => {}
                _ => return None,
            }
            self.word("(")?;
            self.word("name")?;
            let name = self.any_word()?;
            if !is_name(name) || entries.last().is_some_and(|(last, _)| name <= last.as_slice()) {
                return None;
            }
            self.word("node")?;
            self.word("(")?;
            entries.push((name.to_vec(), self.node(depth)?));
            self.word(")")?;
        }
    }
}

/// Whether a file may have this name.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// A valid tree. Seeds can be written by hand: `d3` is a directory of three entries, each after its name;
/// `f` is a file, `e` an executable file, `s` a symlink; names, targets and contents follow a byte with
/// their length.
impl<'a> Arbitrary<'a> for Node {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        below(u, 0)
    }
}

/// A tree at this depth.
fn below(u: &mut Unstructured<'_>, depth: usize) -> Result<Node> {
    let kind: u8 = u.arbitrary()?;
    Ok(match kind % 4 {
        0 if depth < 100 => {
            let count = u.arbitrary::<u8>()? % 8;
            let mut entries = Vec::new();
            for _ in 0..count {
                let name = Some(short(u)?).filter(|name| is_name(name));
                entries.push((name.unwrap_or_else(|| b"a".to_vec()), below(u, depth + 1)?));
            }
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            entries.dedup_by(|(one, _), (other, _)| one == other);
            Node::Directory(entries)
        }
        3 => {
            let target = Some(short(u)?).filter(|text| !text.is_empty() && !text.contains(&0));
            Node::Symlink(target.unwrap_or_else(|| b"a".to_vec()))
        }
        file => {
            let contents = if kind < 0x80 { Some(short(u)?) } else { None };
            Node::Regular { executable: file == 1, contents }
        }
    })
}

/// A length of one byte, and this number of bytes, or fewer if the input ends.
fn short(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = usize::from(u.arbitrary::<u8>()?).min(u.len());
    Ok(u.bytes(length)?.to_vec())
}
