//! Random caches, and the expected result of a collection, computed independently in the simplest way.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix_stored::inventory::{Inventory, StoredObject, StoredPath};
use nix_stored::nix::CachePath;
use nix_stored::retention::{Limits, Pin};
use proptest::prelude::*;
use proptest::sample::Index;

use super::dir::{self, DAY, HOUR};

/// A cache. Ages are in hours. Numbers of paths may be those of absent paths.
#[derive(Debug, Clone)]
pub struct RandomCache {
    pub paths: Vec<RandomPath>,
    /// NARs, which several paths may share.
    nars: Vec<SharedFile>,
    /// Logs, which several paths may share.
    logs: Vec<SharedFile>,
    /// The ages and sizes of objects without an owner.
    unowned: Vec<(u64, usize)>,
    pub pins: Vec<Vec<usize>>,
    /// In percent of the size of the cache.
    max_size: Option<u64>,
    pub max_age: Option<u64>,
}

/// A store path.
#[derive(Debug, Clone)]
pub struct RandomPath {
    nar: usize,
    log: Option<usize>,
    pub references: Vec<usize>,
    age: u64,
    length: usize,
    /// The ages of its listing, its realisation and its build trace.
    sides: [Option<u64>; 3],
}

/// A NAR or a log.
#[derive(Debug, Clone)]
struct SharedFile {
    present: bool,
    age: u64,
    size: usize,
    /// The age of a link to debug symbols in it.
    debug: Option<u64>,
}

/// A file of the cache.
#[derive(Debug, Clone)]
pub struct CacheFile {
    pub key: CachePath,
    pub bytes: Vec<u8>,
    pub age: u64,
    pub owner: Owner,
}

/// The owner of an object, with which it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Path(usize),
    Nar(usize),
    Log(usize),
    None,
}

/// Ages around the grace period, some of them equal.
fn age() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0..24u64, 3 => 22..27u64, 4 => 24..100u64, 3 => 24..3000u64]
}

/// Ages that are seldom the reason why a path is kept.
fn side_age() -> impl Strategy<Value = Option<u64>> {
    proptest::option::weighted(0.3, prop_oneof![1 => 0..24u64, 9 => 24..3000u64])
}

fn shared() -> impl Strategy<Value = SharedFile> {
    let debug = side_age();
    (proptest::bool::weighted(0.9), age(), 0..5000usize, debug)
        .prop_map(|(present, age, size, debug)| SharedFile { present, age, size, debug })
}

/// The maximum number of paths in a cache.
const PATHS: usize = 12;
/// The number of paths that references may name, so that some of them are absent.
const NUMBERS: usize = 14;

/// A random cache. Without `cycles`, as in caches written by Nix, no path refers to itself through
/// another.
pub fn random_cache(cycles: bool) -> impl Strategy<Value = RandomCache> {
    let path = (
        any::<Index>(),
        proptest::option::of(any::<Index>()),
        proptest::collection::vec(0..NUMBERS, 0..4),
        age(),
        0..3000usize,
        [side_age(), side_age(), side_age()],
    );
    let parts = (
        proptest::collection::vec(path, 0..=PATHS),
        proptest::collection::vec(shared(), 1..10),
        proptest::collection::vec(shared(), 1..4),
        proptest::collection::vec((age(), 0..3000usize), 0..4),
        proptest::collection::vec(proptest::collection::vec(0..NUMBERS, 0..3), 0..3),
        proptest::option::weighted(0.8, 0..120u64),
        proptest::option::of(24..3000u64),
    );
    parts.prop_map(move |(paths, nars, logs, unowned, pins, max_size, max_age)| {
        let paths = paths.into_iter().enumerate();
        let paths = paths.map(|(own, (nar, log, references, age, length, sides))| RandomPath {
            nar: nar.index(nars.len()),
            log: log.map(|log| log.index(logs.len())),
            references: references.into_iter().filter(|other| cycles || *other <= own).collect(),
            age,
            length,
            sides,
        });
        RandomCache { paths: paths.collect(), nars, logs, unowned, pins, max_size, max_age }
    })
}

fn parse(key: &str) -> CachePath {
    key.parse().expect("a key")
}

impl RandomCache {
    /// All files.
    pub fn files(&self) -> Vec<CacheFile> {
        let mut files = Vec::new();
        let mut add = |key: String, bytes: Vec<u8>, age: u64, owner: Owner| {
            files.push(CacheFile { key: parse(&key), bytes, age, owner });
        };
        for (number, path) in self.paths.iter().enumerate() {
            let owner = Owner::Path(number);
            let RandomPath { nar, log, references, age, length, sides } = path;
            let text = dir::narinfo_text(number, *nar, references, *log, *length);
            add(dir::narinfo(number), text.into(), *age, owner);
            let base = dir::store_path(number);
            let link = format!("{{\"outPath\": \"{base}\"}}").into_bytes();
            let keys = [
                (CachePath::Listing(dir::hash(number)).key(), b"{}".to_vec()),
                (format!("realisations/sha256:{number:064x}!out.doi"), link.clone()),
                (format!("build-trace-v2/{base}.drv/out.doi"), link),
            ];
            for ((key, bytes), age) in keys.into_iter().zip(sides) {
                if let Some(age) = age {
                    add(key, bytes, *age, owner);
                }
            }
        }
        for (number, nar) in self.nars.iter().enumerate() {
            if nar.present {
                add(dir::nar(number), vec![1; nar.size], nar.age, Owner::Nar(number));
            }
            if let Some(age) = nar.debug {
                let link =
                    format!("{{\"archive\": \"../{}\", \"member\": \"x\"}}", dir::nar(number));
                let owner = if nar.present { Owner::Nar(number) } else { Owner::None };
                add(format!("debuginfo/{number:040x}.debug"), link.into(), age, owner);
            }
        }
        for (number, log) in self.logs.iter().enumerate().filter(|(_, log)| log.present) {
            let wanted = self.paths.iter().any(|path| path.log == Some(number));
            let owner = if wanted { Owner::Log(number) } else { Owner::None };
            add(dir::log(number), vec![2; log.size], log.age, owner);
        }
        for (number, (age, size)) in self.unowned.iter().enumerate() {
            let path = 5000 + number;
            // Half of them are invalid narinfos.
            let key = match number % 2 {
                0 => dir::narinfo(path),
                _ => CachePath::Listing(dir::hash(path)).key(),
            };
            add(key, vec![3; *size], *age, Owner::None);
        }
        files
    }

    pub fn size(&self) -> u64 {
        self.files().iter().map(|file| file.bytes.len() as u64).sum()
    }

    pub fn limits(&self) -> Limits {
        Limits {
            max_size: self.max_size.map(|percent| self.size() * percent / 100),
            max_age: self.max_age.map(hours),
            grace: DAY,
        }
    }

    /// The pins as the cache parses them.
    pub fn pins(&self) -> Vec<Pin> {
        let pins = self.pins.iter().enumerate();
        pins.map(|(number, paths)| Pin {
            name: format!("pin-{number}"),
            paths: paths.iter().copied().map(dir::store_path).collect(),
        })
        .collect()
    }

    /// Writes the files.
    pub fn write(&self, dir: &Path, now: SystemTime) {
        for (number, file) in self.files().iter().enumerate() {
            let used = now - hours(file.age);
            dir::put(dir, &file.key.key(), &file.bytes, used);
            // The later of the two times counts.
            let earlier = used - hours(number as u64 % 5);
            let times = std::fs::FileTimes::new();
            let times = match number % 3 {
                0 => times.set_accessed(earlier),
                1 => times.set_modified(earlier),
                _ => times,
            };
            dir::set_times(dir, &file.key.key(), times);
        }
        dir::put(dir, "nix-cache-info", "StoreDir: /nix/store\n", now);
        for pin in self.pins() {
            let lines: Vec<String> =
                pin.paths.iter().map(|path| format!("/nix/store/{path}\n")).collect();
            dir::put(dir, &format!(".nix-stored/pins/{}", pin.name), lines.concat(), now);
        }
    }

    /// The inventory of this cache.
    pub fn inventory(&self, now: SystemTime) -> Inventory {
        let files = self.files();
        let used = |age: u64| now - hours(age);
        let gather = |owner: Owner| {
            let mut own = files.iter().filter(move |file| file.owner == owner);
            let first = own.next()?;
            let mut object = StoredObject {
                path: first.key.clone(),
                side_files: Vec::new(),
                size: first.bytes.len() as u64,
                used: used(first.age),
            };
            for side in own {
                object.side_files.push(side.key.clone());
                object.size += side.bytes.len() as u64;
                object.used = object.used.max(used(side.age));
            }
            Some(object)
        };
        let mut held = Vec::new();
        let mut places = Vec::new();
        let nars = (0..self.nars.len()).map(Owner::Nar);
        for owner in nars.chain((0..self.logs.len()).map(Owner::Log)) {
            if let Some(object) = gather(owner) {
                places.push(owner);
                held.push(object);
            }
        }
        let place = |owner| places.iter().position(|known| *known == owner).map(|at| at as u32);
        let paths = self.paths.iter().enumerate().map(|(number, path)| {
            let own = gather(Owner::Path(number)).expect("a path has a narinfo");
            let others = path.references.iter().filter(|other| **other != number);
            let others = others.filter(|other| **other < self.paths.len());
            StoredPath {
                store_path: dir::store_path(number),
                nar: place(Owner::Nar(path.nar)),
                log: path.log.and_then(|log| place(Owner::Log(log))),
                references: others.map(|other| *other as u32).collect(),
                side_files: own.side_files,
                size: own.size,
                nar_size: 1,
                mirrored: false,
                uploaded: own.used,
                used: own.used,
            }
        });
        let unowned = files.iter().filter(|file| file.owner == Owner::None);
        let unowned = unowned.map(|file| StoredObject {
            path: file.key.clone(),
            side_files: Vec::new(),
            size: file.bytes.len() as u64,
            used: used(file.age),
        });
        Inventory::new(paths.collect(), held, unowned.collect())
    }

    /// For each pair of paths, whether the first depends on the second.
    pub fn needs(&self) -> Vec<Vec<bool>> {
        let count = self.paths.len();
        let mut needs = vec![vec![false; count]; count];
        for (from, path) in self.paths.iter().enumerate() {
            needs[from][from] = true;
            for &to in path.references.iter().filter(|to| **to < count) {
                needs[from][to] = true;
            }
        }
        for by in 0..count {
            for from in 0..count {
                for to in 0..count {
                    needs[from][to] |= needs[from][by] && needs[by][to];
                }
            }
        }
        needs
    }

    /// The paths that use an object.
    pub fn users(&self, owner: Owner) -> BTreeSet<usize> {
        let paths = self.paths.iter().enumerate();
        let users = paths.filter(|(number, path)| match owner {
            Owner::Path(own) => own == *number,
            Owner::Nar(nar) => path.nar == nar,
            Owner::Log(log) => path.log == Some(log),
            Owner::None => false,
        });
        users.map(|(number, _)| number).collect()
    }
}

pub fn hours(count: u64) -> Duration {
    HOUR * u32::try_from(count).expect("a small number")
}
