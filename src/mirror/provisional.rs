//! Provisional names of NARs with an unknown file hash.
//!
//! A cache that compresses NARs on demand does not know the hash of the file, so its narinfos have
//! no `FileHash` (attic, niks3 and Hydra are such caches). This cache names a NAR by that hash, so
//! until the NAR has been fetched its narinfo is served with a provisional name. Nix remembers a
//! narinfo for 30 days (`narinfo-cache-positive-ttl`), so the name must refer to the NAR at any
//! later time, even after a restart. Therefore it consists of the hash part of the store path and
//! the beginning of the NAR hash.

use sha2::{Digest, Sha256};

use crate::nix::cache_path::{NarExtension, NarName};
use crate::nix::{NarInfo, Sha256Hash, StorePathHash};

/// The prefix of the hashed bytes, so that no file hash equals a provisional name.
const DOMAIN: &[u8] = b"nix-stored: the name of a NAR whose file hash is not known\0";

/// How many bytes of the name are the path's hash part, of the NAR's hash, and of the check.
const PATH: usize = 20;
const CONTENTS: usize = 4;
const CHECK: usize = 8;

/// The contents of a provisional name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Provisional {
    /// The hash part of the store path.
    pub path: StorePathHash,
    contents: [u8; CONTENTS],
    extension: NarExtension,
}

impl Provisional {
    /// The name for the NAR of a path, compressed in such a way.
    pub fn new(info: &NarInfo, extension: NarExtension) -> Self {
        let contents = *info.nar_hash.as_bytes().first_chunk().expect("a hash is longer");
        Self { path: info.store_path.hash(), contents, extension }
    }

    /// Returns the contents of the name, or `None` if it is a file hash.
    pub fn of(name: NarName) -> Option<Self> {
        let (path, rest) = name.file_hash.as_bytes().split_first_chunk::<PATH>()?;
        let contents = *rest.first_chunk()?;
        let it = Self { path: StorePathHash::new(*path), contents, extension: name.extension };
        (it.name() == name).then_some(it)
    }

    /// The name.
    pub fn name(&self) -> NarName {
        let mut bytes = [0; PATH + CONTENTS + CHECK];
        bytes[..PATH].copy_from_slice(self.path.as_bytes());
        bytes[PATH..PATH + CONTENTS].copy_from_slice(&self.contents);
        let check = Sha256::new().chain_update(DOMAIN).chain_update(&bytes[..PATH + CONTENTS]);
        bytes[PATH + CONTENTS..].copy_from_slice(&check.finalize()[..CHECK]);
        NarName { file_hash: Sha256Hash::new(bytes), extension: self.extension }
    }

    /// The NAR that is meant, if `info` is the narinfo of the same path with the same contents.
    pub fn nar_of(&self, info: &NarInfo) -> Option<NarName> {
        let name = info.nar_name()?;
        (*self == Self::new(info, name.extension)).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::StoreDir;

    const NARINFO: &str = "StorePath: /nix/store/8ha1dhmx807czjczmwy078s4r9s254il-hello\n\
        URL: nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz\nCompression: xz\n\
        NarHash: sha256:0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny\nNarSize: 1\n\
        References: \n";

    fn info(text: &str) -> NarInfo {
        NarInfo::parse(text.as_bytes(), &StoreDir::default()).unwrap()
    }

    #[test]
    fn a_name_says_what_it_stands_for_and_no_hash_looks_like_one() {
        let provisional = Provisional::new(&info(NARINFO), NarExtension::Xz);
        assert_eq!(Provisional::of(provisional.name()), Some(provisional));
        // It leads to the same NAR when its hash is known.
        let known = info(NARINFO).nar_name().unwrap();
        assert_eq!(provisional.nar_of(&info(NARINFO)), Some(known));
        assert_eq!(Provisional::of(known), None);
    }

    #[test]
    fn another_path_other_contents_and_another_compression_are_not_meant() {
        let provisional = Provisional::new(&info(NARINFO), NarExtension::Xz);
        for (from, to) in [
            ("/8ha1", "/9ha1"),
            (
                "NarHash: sha256:0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny",
                "NarHash: sha256:0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0n0",
            ),
            (".nar.xz", ".nar.zst"),
        ] {
            let other = NARINFO.replace(from, to);
            assert_ne!(other, NARINFO);
            assert_eq!(provisional.nar_of(&info(&other)), None, "{to}");
        }
    }
}
