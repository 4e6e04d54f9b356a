//! A large cache, made without any server.

use std::fmt::Write as _;
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix_stored::nix::Sha256Hash;

use crate::support::bench::Bench;
use crate::support::cache_dir::{Stored, hash_part, write_cache_info};
use crate::support::nar::{Noise, name};
use crate::support::say;

/// How many paths there are.
const PATHS: usize = 200_000;

/// So many paths came together, as from one build of a system.
const GROUP: usize = 500;

/// How many paths each of them refers to: in the first group, which everything needs, and in its
/// own.
const COMMON: usize = 2;
const OWN: usize = 3;

/// The age of the oldest path.
const OLDEST: Duration = Duration::from_secs(400 * 86_400);

/// The age of the latest: more than the time of grace, so that everything could go.
const LATEST: Duration = Duration::from_secs(2 * 86_400);

/// One path in so many is among those that were used last.
const LATEST_SHARE: usize = 20;

/// The smallest and the largest NAR in bytes.
const SMALLEST: f64 = 64e3;
const LARGEST: f64 = 1e9;

/// A cache that has filled up for a year.
pub struct LargeCache {
    pub dir: PathBuf,
    /// The narinfos that were used last.
    pub latest: Vec<Stored>,
    pub paths: usize,
    pub references: usize,
}

/// Evenly distributed numbers.
struct Dice(Noise);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }

    /// The length of a NAR: small ones are many, and most bytes are in a few.
    fn length(&mut self) -> u64 {
        let rank = (self.below(1 << 30) + 1) as f64 / (1_u64 << 30) as f64;
        (SMALLEST / rank.powf(0.7)).min(LARGEST) as u64
    }
}

impl LargeCache {
    pub fn make(bench: &Bench) -> anyhow::Result<Self> {
        let paths = if bench.quick { PATHS / 50 } else { PATHS };
        say(&format!("making a cache of {paths} paths"));
        let dir = bench.fresh_dir("large")?;
        fs::create_dir(dir.join("nar"))?;
        write_cache_info(&dir)?;
        let parts: Vec<String> = (0..paths).map(|number| hash_part("path", number)).collect();
        let mut dice = Dice(Noise::new(5));
        let now = SystemTime::now();
        let mut cache = Self { dir, latest: Vec::new(), paths, references: 0 };
        for (number, part) in parts.iter().enumerate() {
            let age = OLDEST.mul_f64(1.0 - number as f64 / paths as f64) + LATEST;
            let used = FileTimes::new().set_accessed(now - age).set_modified(now - age);
            // What is in a NAR, nobody looks at here: its file is a hole.
            let hash = Sha256Hash::of(part.as_bytes());
            let nar = Stored { path: name(hash), size: dice.length() };
            let file = File::create_new(cache.dir.join(&nar.path))?;
            file.set_len(nar.size)?;
            file.set_times(used)?;

            let mut references = String::new();
            for step in 0..COMMON + OWN {
                let before = if step < COMMON { number.min(GROUP) } else { number % GROUP };
                let first = if step < COMMON { 0 } else { number - before };
                // The first of all has itself to refer to.
                let other = first + dice.below(before.max(1) as u64) as usize;
                write!(references, "{}-package-{other}-1.2.3 ", parts[other])?;
                cache.references += 1;
            }
            let text = narinfo(number, part, &nar, hash, references.trim_end());
            let path = format!("{part}.narinfo");
            let mut file = File::create_new(cache.dir.join(&path))?;
            file.write_all(text.as_bytes())?;
            file.set_times(used)?;
            if paths - number <= paths / LATEST_SHARE {
                cache.latest.push(Stored { path, size: text.len() as u64 });
            }
        }
        bench.scratch.settle()?;
        Ok(cache)
    }
}

fn narinfo(number: usize, part: &str, nar: &Stored, hash: Sha256Hash, references: &str) -> String {
    format!(
        "StorePath: /nix/store/{part}-package-{number}-1.2.3\n\
         URL: {url}\n\
         Compression: none\n\
         FileHash: {hash}\n\
         FileSize: {size}\n\
         NarHash: {hash}\n\
         NarSize: {size}\n\
         References: {references}\n\
         Deriver: {deriver}-package-{number}-1.2.3.drv\n\
         Sig: cache.example.org-1:{signature}==\n",
        url = nar.path,
        size = nar.size,
        deriver = hash_part("derivation", number),
        signature = "A".repeat(86),
    )
}
