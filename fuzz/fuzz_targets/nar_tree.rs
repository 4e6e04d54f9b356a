//! The NAR of any tree is valid, and becomes invalid if a byte, an order or a name is wrong.
//!
//! The first byte of the input selects how the tree is damaged; the next 8 bytes are the seed for the sizes
//! of the pieces; the rest is the tree.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nix_stored::nix::nar::NarError;
use nix_stored_fuzz::nar::{Node, check, read, render, sizes};

#[derive(Debug, Arbitrary)]
struct Input {
    harm: u8,
    seed: u64,
    tree: Node,
}

/// Names that no file can have.
const BAD_NAMES: [&[u8]; 7] = [b"", b".", b"..", b"/", b"a/b", b"a\0", b"\0"];

/// Damages the tree at its root, if possible, so that its NAR is invalid.
fn harmed(tree: &Node, harm: u8) -> Option<Node> {
    let Node::Directory(entries) = tree else { return None };
    let mut entries = entries.clone();
    let (way, which) = (harm % 4, usize::from(harm / 4));
    let at = which % entries.len().max(1);
    match way {
        0 => entries.insert(at, entries.get(at)?.clone()),
        1 => {
            entries.get(at + 1)?;
            entries.swap(at, at + 1);
        }
        _ => entries.last_mut()?.0 = BAD_NAMES[which % BAD_NAMES.len()].to_vec(),
    }
    Some(Node::Directory(entries))
}

fuzz_target!(|input: Input| {
    let Input { harm, seed, tree } = input;
    if let Some(harmed) = harmed(&tree, harm) {
        let nar = render(&harmed);
        let refused = check(&nar, []);
        assert!(matches!(refused, Err(NarError::Name(_) | NarError::Order { .. })), "{refused:?}");
        assert!(check(&nar, sizes(seed)).is_err());
    }

    let nar = render(&tree);
    assert_eq!(check(&nar, []), Ok(()));
    assert_eq!(check(&nar, sizes(seed)), Ok(()));
    assert!(read(&nar) == Some(tree));
    let cut = &nar[..nar.len() - 1];
    assert_eq!(check(cut, sizes(seed)), Err(NarError::Unfinished(cut.len() as u64)));
    let longer = [nar.as_slice(), b"\0"].concat();
    assert_eq!(check(&longer, sizes(seed)), Err(NarError::Trailing(nar.len() as u64)));
});
