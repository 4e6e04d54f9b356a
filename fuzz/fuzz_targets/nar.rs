//! Bytes are a NAR or not, in whatever pieces they come.
//!
//! The input's first 8 bytes say how the rest is cut, the rest is the NAR.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nix_stored::nix::nar::{NarChecker, NarError};
use nix_stored_fuzz::nar::{check, read, render, sizes};

/// Where a wrong text is, is told by the piece that it ends in: that depends on the cut.
fn without_place(error: NarError) -> NarError {
    match error {
        NarError::Unexpected { expected, .. } => NarError::Unexpected { at: 0, expected },
        NarError::TooLong { length, .. } => NarError::TooLong { at: 0, length },
        other => other,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((seed, nar)) = data.split_first_chunk() else { return };

    let whole = check(nar, []);
    for cut in [check(nar, sizes(u64::from_le_bytes(*seed))), check(nar, std::iter::repeat(1))] {
        assert_eq!(cut.map_err(without_place), whole.clone().map_err(without_place));
    }
    let tree = read(nar);
    assert_eq!(whole.is_ok(), tree.is_some(), "{whole:?} {tree:?}");

    let Some(tree) = tree else { return };
    // A tree has one NAR only.
    assert!(render(&tree) == nar);
    assert!(check(&nar[..nar.len() - 1], []).is_err());
    let mut checker = NarChecker::default();
    for byte in nar.chunks(1) {
        assert!(checker.finish().is_err());
        checker.push(byte).expect("it was taken whole");
    }
    assert!(checker.push(b"\0").is_err());
});
