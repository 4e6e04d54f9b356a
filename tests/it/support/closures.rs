//! Closures that share paths, and whether a cache has them completely.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix_stored::nix::{CachePath, NarInfo, StoreDir};

use super::cache_dir::objects;
use super::nix::{Nix, utf8};
use super::noise::Noise;

/// A store path that is a text file and refers to earlier texts of the same list.
#[derive(Debug, Clone)]
pub struct Text {
    pub name: String,
    /// The approximate length of the text, in bytes.
    pub length: usize,
    /// Texts with equal numbers and references have the same contents, and so the same NAR.
    pub contents: u64,
    /// The indices of the texts it refers to.
    pub needs: Vec<usize>,
}

/// Texts in three layers, and the indices of the roots.
#[derive(Debug, Clone)]
pub struct Layers {
    pub texts: Vec<Text>,
    /// The indices of the texts without referrers.
    pub roots: Vec<usize>,
}

impl Layers {
    /// `count` roots that share libraries, which share parts. Each text has about `length` bytes.
    /// Parts come in pairs that differ only in their names.
    pub fn new(tag: &str, count: usize, length: usize) -> Self {
        let mut noise = Noise::new(count as u64);
        let mut texts: Vec<Text> = Vec::new();
        let mut layer = |kind: &str, count: usize, below: &[usize]| -> Vec<usize> {
            let place = |n| {
                let mut needs: Vec<usize> = match below.len() as u64 {
                    0 => Vec::new(),
                    some => (0..2).map(|_| below[noise.below(some) as usize]).collect(),
                };
                needs.sort_unstable();
                needs.dedup();
                let contents = n as u64 / if needs.is_empty() { 2 } else { 1 };
                texts.push(Text { name: format!("{tag}-{kind}-{n}"), length, contents, needs });
                texts.len() - 1
            };
            (0..count).map(place).collect()
        };
        let parts = layer("part", 2 * count, &[]);
        let libraries = layer("library", count, &parts);
        let roots = layer("root", count, &libraries);
        Self { texts, roots }
    }

    /// The closure of the text at index `place`, references first.
    pub fn closure(&self, place: usize) -> Vec<usize> {
        let mut found = BTreeSet::new();
        let mut stack = vec![place];
        while let Some(place) = stack.pop() {
            if found.insert(place) {
                stack.extend(&self.texts[place].needs);
            }
        }
        // Indices are in order because a text refers only to earlier ones.
        found.into_iter().collect()
    }
}

impl Nix {
    /// Adds texts and returns their store paths. The paths are content-addressed, so that they need
    /// neither a build nor signatures.
    #[track_caller]
    pub fn add_texts(&self, texts: &[Text]) -> Vec<String> {
        let mut expression = String::from("let\n");
        let mut list = String::new();
        for (place, Text { name, length, contents, needs }) in texts.iter().enumerate() {
            let needs: String = needs.iter().map(|need| format!("${{t{need}}}\n")).collect();
            let padding: String = Noise::new(*contents)
                .bytes(length / 2)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            writeln!(expression, "t{place} = builtins.toFile \"{name}\" \"{needs}{padding}\";")
                .expect("writing to a string succeeds");
            write!(list, " t{place}").expect("writing to a string succeeds");
        }
        write!(expression, "in [{list} ]").expect("writing to a string succeeds");
        let file = self.file("texts.nix");
        fs::write(&file, expression).expect("an expression is written");
        let command =
            ["nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", utf8(&file)];
        serde_json::from_str(&self.ok(&command)).expect("a list of store paths")
    }
}

/// The key of the narinfo of a store path.
pub fn narinfo_of(store_path: &str) -> String {
    format!("{}.narinfo", &store_path["/nix/store/".len()..][..32])
}

/// The references of each store path in the cache, without those to itself.
pub fn references(dir: &Path) -> BTreeMap<String, Vec<String>> {
    let store_dir = StoreDir::default();
    let narinfos = objects(dir).into_iter().filter(|key| key.ends_with(".narinfo"));
    let parsed = narinfos.map(|key| {
        let text = fs::read(dir.join(&key)).expect("an object can be read");
        let info = NarInfo::parse(&text, &store_dir).expect("a narinfo");
        let others = info.references.iter().filter(|path| **path != info.store_path);
        let others = others.map(|path| store_dir.join(path).to_string()).collect();
        (store_dir.join(&info.store_path).to_string(), others)
    });
    parsed.collect()
}

/// Checks that all references of all paths are in the cache. Only for caches to which only complete
/// closures were uploaded.
#[track_caller]
pub fn assert_closures_are_complete(dir: &Path) {
    let held = references(dir);
    for (path, references) in &held {
        for reference in references {
            assert!(held.contains_key(reference), "{path} refers to {reference}, which is absent");
        }
    }
}

/// Checks that every NAR has a narinfo that names it.
#[track_caller]
pub fn assert_no_orphans(dir: &Path) {
    let objects = objects(dir);
    let narinfos = objects.iter().filter(|key| key.ends_with(".narinfo"));
    let named: BTreeSet<String> = narinfos
        .map(|key| {
            let text = fs::read(dir.join(key)).expect("an object can be read");
            NarInfo::parse(&text, &StoreDir::default()).expect("a narinfo").url
        })
        .collect();
    for nar in objects.iter().filter(|key| matches!(key.parse(), Ok(CachePath::Nar(_)))) {
        assert!(named.contains(nar), "nothing names {nar}");
    }
}

/// The files in the folder that a collection moves objects to before it deletes them.
pub fn trash(dir: &Path) -> Vec<String> {
    let trash = dir.join(".nix-stored/trash");
    if trash.exists() { objects(&trash) } else { Vec::new() }
}

/// Sets the times of an object as if it was uploaded and last used that long ago.
#[track_caller]
pub fn last_used(dir: &Path, key: &str, ago: Duration) {
    let then = SystemTime::now() - ago;
    let times = FileTimes::new().set_accessed(then).set_modified(then);
    let file = File::options().write(true).open(dir.join(key)).expect("the object is there");
    file.set_times(times).expect("the times are set");
}
