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

/// The length of the hash part in a provisional name, in bytes.
const PATH_BYTES: usize = 20;

/// The length of the prefix of the NAR hash in a provisional name, in bytes.
const NAR_HASH_BYTES: usize = 4;

/// The length of the checksum in a provisional name, in bytes. With 64 bits, a random file hash is
/// practically never a provisional name.
const CHECK_BYTES: usize = 8;

/// The parts of a provisional name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProvisionalName {
    /// The hash part of the store path.
    pub path: StorePathHash,
    nar_hash_prefix: [u8; NAR_HASH_BYTES],
    extension: NarExtension,
}

impl ProvisionalName {
    /// Creates the provisional name for the NAR of `info`, compressed as `extension` says.
    pub(super) fn new(info: &NarInfo, extension: NarExtension) -> Self {
        let nar_hash_prefix = *info.nar_hash.as_bytes().first_chunk().expect("a hash is longer");
        Self { path: info.store_path.hash(), nar_hash_prefix, extension }
    }

    /// Parses a name. Returns `None` if it is a file hash.
    pub(super) fn of(name: NarName) -> Option<Self> {
        let (path, rest) = name.file_hash.as_bytes().split_first_chunk::<PATH_BYTES>()?;
        let nar_hash_prefix = *rest.first_chunk()?;
        let provisional =
            Self { path: StorePathHash::new(*path), nar_hash_prefix, extension: name.extension };
        (provisional.name() == name).then_some(provisional)
    }

    /// Returns the provisional name: the hash part of the store path, the prefix of the NAR hash, and a
    /// checksum of both.
    pub(super) fn name(&self) -> NarName {
        let mut bytes = [0; PATH_BYTES + NAR_HASH_BYTES + CHECK_BYTES];
        bytes[..PATH_BYTES].copy_from_slice(self.path.as_bytes());
        bytes[PATH_BYTES..PATH_BYTES + NAR_HASH_BYTES].copy_from_slice(&self.nar_hash_prefix);
        let check =
            Sha256::new().chain_update(DOMAIN).chain_update(&bytes[..PATH_BYTES + NAR_HASH_BYTES]);
        bytes[PATH_BYTES + NAR_HASH_BYTES..].copy_from_slice(&check.finalize()[..CHECK_BYTES]);
        NarName { file_hash: Sha256Hash::new(bytes), extension: self.extension }
    }

    /// Returns the final name of the NAR, if `info` is the narinfo of the same path with the same
    /// contents.
    pub(super) fn nar_of(&self, info: &NarInfo) -> Option<NarName> {
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
    fn a_provisional_name_can_be_parsed_and_a_file_hash_cannot() {
        let provisional = ProvisionalName::new(&info(NARINFO), NarExtension::Xz);
        assert_eq!(ProvisionalName::of(provisional.name()), Some(provisional));
        // The provisional name refers to the same NAR once its file hash is known.
        let known = info(NARINFO).nar_name().unwrap();
        assert_eq!(provisional.nar_of(&info(NARINFO)), Some(known));
        assert_eq!(ProvisionalName::of(known), None);
    }

    #[test]
    fn a_provisional_name_refers_to_one_path_one_nar_and_one_compression() {
        let provisional = ProvisionalName::new(&info(NARINFO), NarExtension::Xz);
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
