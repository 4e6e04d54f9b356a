//! The lenient parser of narinfos finds all objects that the strict parser finds, so a collection keeps
//! everything that a narinfo names.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nix_stored::nix::{LenientNarInfo, NarInfo, StoreDir};

fuzz_target!(|data: &[u8]| {
    let named = LenientNarInfo::read(data);
    assert_eq!(LenientNarInfo::read(data), named);
    assert!(named.nars.is_empty() || named.has_url, "{named:?}");
    let Ok(info) = NarInfo::parse(data, &StoreDir::default()) else { return };

    assert!(!named.is_empty());
    assert_eq!(named.store_path.as_ref(), Some(&info.store_path));
    assert_eq!(named.deriver, info.deriver);
    for reference in info.references.iter().chain([&info.store_path]) {
        assert!(named.references.contains(&reference.hash()), "{reference}");
    }
    for nar in [info.nar_name(), info.fetched_nar(), info.named_nar()].into_iter().flatten() {
        assert!(named.nars.contains(&nar), "{nar}");
    }
});
