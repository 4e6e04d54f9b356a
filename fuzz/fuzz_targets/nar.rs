//! Whether bytes are a NAR does not depend on the pieces in which they arrive.
//!
//! The first 8 bytes of the input are the seed for the sizes of the pieces; the rest is the NAR.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nix_stored::nix::nar::{NarChecker, NarError};
use nix_stored_fuzz::nar::{check, read, render, sizes};

/// Removes the offset from an error: it is that of the piece in which the wrong string ends.
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
        checker.push(byte).expect("the whole NAR is valid");
    }
    assert!(checker.push(b"\0").is_err());
});
