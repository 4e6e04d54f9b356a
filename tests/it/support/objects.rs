//! Small valid objects.

use nix_stored::nix::{Sha256Hash, StorePathHash};

use super::noise::Noise;

/// A store path with one file in it, and its objects in a cache.
#[derive(Debug, Clone)]
pub struct Sample {
    pub store_path: String,
    /// The uncompressed NAR.
    pub nar: Vec<u8>,
    /// `/nar/….nar`
    pub nar_path: String,
    /// `/….narinfo`
    pub narinfo_path: String,
    pub narinfo: String,
}

impl Sample {
    /// The same sample with a random store path hash.
    pub fn named(self, noise: &mut Noise) -> Self {
        let bytes: [u8; 20] = noise.bytes(20).try_into().expect("20 bytes");
        let hash_part = |path: &str| path[11..43].to_owned();
        let (old, new) = (hash_part(&self.store_path), StorePathHash::new(bytes).to_string());
        Self {
            store_path: self.store_path.replace(&old, &new),
            narinfo_path: self.narinfo_path.replace(&old, &new),
            narinfo: self.narinfo.replace(&old, &new),
            ..self
        }
    }
}

/// The sample with this number, whose file contains `contents`.
pub fn sample(number: u8, contents: &[u8]) -> Sample {
    let hash_part = StorePathHash::new([number; 20]);
    let store_path = format!("/nix/store/{hash_part}-sample-{number}");
    let nar = nar_of_file(contents);
    let hash = Sha256Hash::of(&nar);
    let url = format!("nar/{}.nar", hash.to_nix32());
    let size = nar.len();
    Sample {
        narinfo: format!(
            "StorePath: {store_path}\nURL: {url}\nCompression: none\nFileHash: {hash}\n\
             FileSize: {size}\nNarHash: {hash}\nNarSize: {size}\nReferences: \n"
        ),
        store_path,
        nar,
        nar_path: format!("/{url}"),
        narinfo_path: format!("/{hash_part}.narinfo"),
    }
}

/// The NAR of a regular file (Nix's `doc/manual/source/protocols/nix-archive.md`).
pub fn nar_of_file(contents: &[u8]) -> Vec<u8> {
    let mut nar = Vec::with_capacity(contents.len() + 128);
    let mut string = |bytes: &[u8]| {
        nar.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        nar.extend_from_slice(bytes);
        nar.resize(nar.len().next_multiple_of(8), 0);
    };
    for token in ["nix-archive-1", "(", "type", "regular", "contents"] {
        string(token.as_bytes());
    }
    string(contents);
    string(b")");
    nar
}

/// One path of every kind of object. None of them is in a new cache.
pub const ONE_OF_EACH: [&str; 9] = [
    "/nix-cache-info",
    "/8ha1dhmx807czjczmwy078s4r9s254il.narinfo",
    "/8ha1dhmx807czjczmwy078s4r9s254il.ls",
    "/nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar",
    "/nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz",
    "/log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv",
    "/realisations/sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!out.doi",
    "/build-trace-v2/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv/out.doi",
    "/debuginfo/abcdef0123456789abcdef0123456789abcdef01.debug",
];
