//! Cache directories, generated without a server.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use nix_stored::nix::Sha256Hash;

use crate::support::nar::{Large, Noise, name};

/// The path of an object, and its size in bytes.
#[derive(Debug, Clone)]
pub struct Stored {
    pub path: String,
    pub size: u64,
}

/// A valid hash part of a store path, from a SHA-256.
pub fn hash_part(what: &str, number: usize) -> String {
    let mut text = Sha256Hash::of(format!("{what} {number}").as_bytes()).to_nix32();
    text.truncate(32);
    text
}

/// Writes `nix-cache-info`.
pub fn write_cache_info(dir: &Path) -> anyhow::Result<()> {
    let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
    Ok(fs::write(dir.join("nix-cache-info"), text)?)
}

/// A narinfo like those of Nix, with some references.
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

/// Writes `count` narinfos that all refer to one NAR, which is also written. Returns their paths.
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

/// Writes a large NAR.
pub fn write_large(dir: &Path, nar: &Large) -> anyhow::Result<Stored> {
    let stored = Stored { path: name(nar.hash), size: nar.length() };
    fs::create_dir_all(dir.join("nar"))?;
    nar.write_to(File::create(dir.join(&stored.path))?)?;
    Ok(stored)
}

/// A closure with realistic sizes: a few large paths and many small ones.
#[derive(Debug)]
pub struct Closure {
    pub narinfos: Vec<Stored>,
    pub nars: Vec<Stored>,
}

/// Writes a closure of `count` paths whose NARs have about `bytes` in total. The content does not
/// matter to a server, so it is random, like the output of zstd.
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
    // In the order of the names, which are hashes, so that the large ones are not first.
    closure.nars.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(closure)
}
