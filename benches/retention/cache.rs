//! A large cache, generated without a server.

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

/// The number of paths.
const PATHS: usize = 200_000;

/// The number of paths that were uploaded together, like one build of a system.
const GROUP: usize = 500;

/// The number of references of each path: to the first group, which all paths need, and to its own
/// group.
const COMMON: usize = 2;
const OWN: usize = 3;

/// The age of the oldest path.
const OLDEST: Duration = Duration::from_secs(400 * 86_400);

/// The age of the latest path: more than the grace period, so that every path may be removed.
const LATEST: Duration = Duration::from_secs(2 * 86_400);

/// One in this many paths is among the most recently used ones.
const LATEST_SHARE: usize = 20;

/// The sizes of the smallest and the largest NAR, in bytes.
const SMALLEST: f64 = 64e3;
const LARGEST: f64 = 1e9;

/// A cache with the content of a year.
pub struct LargeCache {
    pub dir: PathBuf,
    /// The most recently used narinfos.
    pub latest: Vec<Stored>,
    pub paths: usize,
    pub references: usize,
}

/// A generator of uniformly distributed numbers.
struct UniformNumbers(Noise);

impl UniformNumbers {
    fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }

    /// The length of a NAR: most NARs are small, and most bytes are in a few large ones.
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
        let mut numbers = UniformNumbers(Noise::new(5));
        let now = SystemTime::now();
        let mut cache = Self { dir, latest: Vec::new(), paths, references: 0 };
        for (number, part) in parts.iter().enumerate() {
            let age = OLDEST.mul_f64(1.0 - number as f64 / paths as f64) + LATEST;
            let used = FileTimes::new().set_accessed(now - age).set_modified(now - age);
            // The content of NARs is never read here, so the files are sparse.
            let hash = Sha256Hash::of(part.as_bytes());
            let nar = Stored { path: name(hash), size: numbers.length() };
            let file = File::create_new(cache.dir.join(&nar.path))?;
            file.set_len(nar.size)?;
            file.set_times(used)?;

            let mut references = String::new();
            for step in 0..COMMON + OWN {
                let before = if step < COMMON { number.min(GROUP) } else { number % GROUP };
                let first = if step < COMMON { 0 } else { number - before };
                // The first path of all refers to itself.
                let other = first + numbers.below(before.max(1) as u64) as usize;
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
