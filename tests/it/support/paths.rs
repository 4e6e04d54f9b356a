//! Generated store paths and their signatures.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use super::nix::{Nix, lines, utf8, with_paths};
use super::scratch::Scratch;

/// A key pair for signing store paths.
pub struct SigningKey {
    /// The file with the secret key.
    pub secret: PathBuf,
    /// The public key, in the format of `trusted-public-keys`.
    pub public: String,
}

impl Nix {
    /// Adds `count` files of a few bytes each. Different `tag`s give different paths.
    #[track_caller]
    pub fn add_tiny_files(&self, tag: &str, count: usize) -> Vec<String> {
        let dir = Scratch::new();
        let files: Vec<String> = (0..count)
            .map(|n| {
                let file = dir.join(&format!("{tag}-{n}"));
                fs::write(&file, format!("{tag} {n}\n")).expect("the file is written");
                utf8(&file).to_owned()
            })
            .collect();
        let add = |some| lines(&self.ok(&with_paths(&["nix-store", "--add"], some)));
        files.chunks(500).flat_map(add).collect()
    }

    /// Adds one file of `mib` MiB, half of it random and half of it text.
    #[track_caller]
    pub fn add_big_file(&self, mib: usize) -> String {
        let dir = Scratch::new();
        let name = dir.join("big");
        let mut file = BufWriter::new(fs::File::create(&name).expect("the file is created"));
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        let text = b"the quick brown fox jumps over the lazy dog, again and again..\n\n";
        let words = 1024 * 1024 / (2 * size_of::<u64>());
        for _ in 0..mib {
            for _ in 0..words {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                file.write_all(&noise.to_le_bytes()).expect("the file is written");
            }
            for _ in 0..words * size_of::<u64>() / text.len() {
                file.write_all(text).expect("the file is written");
            }
        }
        drop(file.into_inner().expect("the file is written"));
        self.ok(&["nix-store", "--add", utf8(&name)])
    }

    /// Generates a key pair.
    #[track_caller]
    pub fn signing_key(&self, name: &str) -> SigningKey {
        let secret = self.file(&format!("{name}.secret"));
        let public = self.file(&format!("{name}.public"));
        self.ok(&["nix-store", "--generate-binary-cache-key", name, utf8(&secret), utf8(&public)]);
        let public = fs::read_to_string(public).expect("Nix has written the public key");
        SigningKey { secret, public: public.trim().to_owned() }
    }

    /// Signs the closure of these paths.
    #[track_caller]
    pub fn sign(&self, key: &SigningKey, paths: &[String]) {
        let secret = utf8(&key.secret);
        self.ok(&with_paths(&["nix", "store", "sign", "-r", "-k", secret], paths));
    }
}
