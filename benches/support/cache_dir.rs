//! Directories that are caches, made without any server.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use nix_stored::nix::Sha256Hash;

use crate::support::nar::{Large, Noise, name};

/// Where an object is, and how many bytes it has.
#[derive(Debug, Clone)]
pub struct Stored {
    pub path: String,
    pub size: u64,
}

/// 32 characters that can be the hash part of a store path: the first of a SHA-256.
pub fn hash_part(what: &str, number: usize) -> String {
    let mut text = Sha256Hash::of(format!("{what} {number}").as_bytes()).to_nix32();
    text.truncate(32);
    text
}

/// What every cache begins with.
pub fn write_cache_info(dir: &Path) -> anyhow::Result<()> {
    let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
    Ok(fs::write(dir.join("nix-cache-info"), text)?)
}

/// A narinfo as Nix writes them, with a handful of references.
fn narinfo(number: usize, nar: &Stored, compression: &str, hash: Sha256Hash) -> (String, String) {
    let part = hash_part("path", number);
    let references: Vec<String> = (0..number % 6)
        .map(|step| format!("{}-library-{step}-1.2.3", hash_part("path", number + step)))
        .collect();
    let text = format!(
        "StorePath: /nix/store/{part}-package-{number}-1.0\n\
         URL: {url}\n\
         Compression: {compression}\n\
         FileHash: sha256:{hash}\n\
         FileSize: {size}\n\
         NarHash: sha256:{hash}\n\
         NarSize: {size}\n\
         References: {references}\n\
         Deriver: {deriver}-package-{number}-1.0.drv\n\
         Sig: cache.example.org-1:{signature}==\n",
        url = nar.path,
        hash = hash.to_nix32(),
        size = nar.size,
        references = references.join(" "),
        deriver = hash_part("derivation", number),
        signature = "A".repeat(86),
    );
    (format!("{part}.narinfo"), text)
}

/// Puts `count` narinfos there, all with the NAR that is there too, and says where they are.
pub fn write_narinfos(dir: &Path, count: usize) -> anyhow::Result<Vec<Stored>> {
    write_cache_info(dir)?;
    let nar = Large::new(0);
    let stored = Stored { path: name(nar.hash), size: nar.length() };
    fs::create_dir_all(dir.join("nar"))?;
    nar.write_to(File::create(dir.join(&stored.path))?)?;
    (0..count)
        .map(|number| {
            let (path, text) = narinfo(number, &stored, "none", nar.hash);
            fs::write(dir.join(&path), &text)?;
            Ok(Stored { path, size: text.len() as u64 })
        })
        .collect()
}

/// Puts a large NAR there.
pub fn write_large(dir: &Path, nar: &Large) -> anyhow::Result<Stored> {
    let stored = Stored { path: name(nar.hash), size: nar.length() };
    fs::create_dir_all(dir.join("nar"))?;
    nar.write_to(File::create(dir.join(&stored.path))?)?;
    Ok(stored)
}

/// A closure with sizes as closures have them: a few large paths and many small ones.
#[derive(Debug)]
pub struct Closure {
    pub narinfos: Vec<Stored>,
    pub nars: Vec<Stored>,
}

/// Puts a closure of `count` paths there whose NARs have about `bytes` together. What a server does
/// with them does not depend on what is in them, so they are noise, as zstd's output is.
pub fn write_closure(dir: &Path, count: usize, bytes: u64) -> anyhow::Result<Closure> {
    write_cache_info(dir)?;
    fs::create_dir_all(dir.join("nar"))?;
    let weights: Vec<f64> = (1..=count).map(|rank| 1.0 / rank as f64).collect();
    let all: f64 = weights.iter().sum();
    let mut closure = Closure { narinfos: Vec::new(), nars: Vec::new() };
    let mut body = Vec::new();
    for (number, weight) in weights.iter().enumerate() {
        body.resize((bytes as f64 * weight / all) as usize, 0);
        Noise::new(number as u64 + 1).fill(&mut body);
        let hash = Sha256Hash::of(&body);
        let nar = Stored { path: format!("{}.zst", name(hash)), size: body.len() as u64 };
        File::create(dir.join(&nar.path))?.write_all(&body)?;
        let (path, text) = narinfo(number, &nar, "zstd", hash);
        fs::write(dir.join(&path), &text)?;
        closure.narinfos.push(Stored { path, size: text.len() as u64 });
        closure.nars.push(nar);
    }
    // By name, which is by hash: a client does not get the large ones first.
    closure.nars.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(closure)
}
