//! A valid narinfo is the same after printing and parsing it, and its fingerprint can be parsed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nix_stored::nix::{CachePath, NarInfo, Sha256Hash, StoreDir, StorePath};

fuzz_target!(|data: &[u8]| {
    let store_dir = StoreDir::default();
    let Ok(info) = NarInfo::parse(data, &store_dir) else { return };

    let text = info.to_string();
    assert_eq!(NarInfo::parse(text.as_bytes(), &store_dir).as_ref(), Ok(&info), "{text}");
    assert!(text.ends_with('\n') && !text.contains('\r'), "{text:?}");

    assert!(!info.url.is_empty() && !info.compression.is_empty(), "{text}");

    let fingerprint = info.fingerprint();
    let parts: Vec<&str> = fingerprint.split(';').collect();
    let [version, path, hash, size, references] = parts[..] else {
        panic!("{} parts: {fingerprint}", parts.len());
    };
    assert_eq!(version, "1");
    assert_eq!(store_dir.parse_path(path).as_ref(), Ok(&info.store_path));
    assert_eq!(Sha256Hash::parse(hash), Ok(info.nar_hash));
    assert_eq!(size.parse(), Ok(info.nar_size));
    assert_ne!(info.nar_size, 0);

    let signed: Vec<StorePath> = references
        .split(',')
        .filter(|path| !path.is_empty())
        .map(|path| store_dir.parse_path(path).expect("a reference is a store path"))
        .collect();
    assert!(signed.is_sorted_by(|one, next| one.to_string() < next.to_string()), "{references}");
    assert!(info.references.iter().all(|path| signed.contains(path)), "{references}");
    assert!(signed.iter().all(|path| info.references.contains(path)), "{references}");

    if let Some(name) = info.nar_name() {
        assert_eq!(CachePath::Nar(name).key(), info.url);
    }
});
