//! A cache directory, written file by file with chosen times.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix_stored::nix::cache_path::{NarExtension, NarName};
use nix_stored::nix::{CachePath, NarInfo, Sha256Hash, StoreDir, StorePath, StorePathHash};
use rustix::fs::OFlags;

use crate::support::audit;

pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Now, as every file system can keep it.
pub fn now() -> SystemTime {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The hash part of the path with this number.
pub fn hash(number: usize) -> StorePathHash {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    StorePathHash::new(bytes)
}

pub fn store_path(number: usize) -> StorePath {
    format!("{}-path-{number}", hash(number)).parse().expect("a store path")
}

pub fn derivation(number: usize) -> StorePath {
    format!("{}-path-{number}.drv", hash(1_000_000 + number)).parse().expect("a store path")
}

/// The key of a narinfo.
pub fn narinfo(number: usize) -> String {
    CachePath::NarInfo(hash(number)).key()
}

fn nar_name(number: usize) -> NarName {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    NarName { file_hash: Sha256Hash::new(bytes), extension: NarExtension::Xz }
}

/// The key of a NAR.
pub fn nar(number: usize) -> String {
    CachePath::Nar(nar_name(number)).key()
}

/// The key of a log.
pub fn log(number: usize) -> String {
    CachePath::Log(derivation(number)).key()
}

/// What a narinfo says; `length` makes it longer.
pub fn narinfo_text(
    number: usize,
    nar: usize,
    references: &[usize],
    deriver: Option<usize>,
    length: usize,
) -> String {
    let name = nar_name(nar);
    NarInfo {
        store_dir: StoreDir::default(),
        store_path: store_path(number),
        url: CachePath::Nar(name).key(),
        compression: "xz".to_owned(),
        file_hash: Some(name.file_hash),
        file_size: Some(1),
        nar_hash: name.file_hash,
        nar_size: 1,
        references: references.iter().copied().map(store_path).collect(),
        deriver: deriver.map(derivation),
        signatures: Vec::new(),
        ca: None,
        unknown: vec![("X-Padding".to_owned(), "x".repeat(length))],
    }
    .to_string()
}

/// Makes an object that was written and used at `used`.
pub fn put(dir: &Path, key: &str, bytes: impl AsRef<[u8]>, used: SystemTime) {
    let file = dir.join(key);
    fs::create_dir_all(file.parent().expect("it is below the cache")).expect("made");
    fs::write(file, bytes).expect("written");
    set_used(dir, key, used);
}

/// A path with a NAR of its own, all of it used at `used`.
pub fn put_path(dir: &Path, number: usize, references: &[usize], used: SystemTime) {
    put(dir, &narinfo(number), narinfo_text(number, number, references, None, 0), used);
    put(dir, &nar(number), format!("the NAR of path {number}"), used);
}

/// Says of an object that it was written and used at `used`.
pub fn set_used(dir: &Path, key: &str, used: SystemTime) {
    set_times(dir, key, FileTimes::new().set_accessed(used).set_modified(used));
}

pub fn set_times(dir: &Path, key: &str, times: FileTimes) {
    let file = File::options().write(true).open(dir.join(key)).expect("it is there");
    file.set_times(times).expect("its owner may");
}

/// When an object was used, as far as that is recorded.
pub fn used(dir: &Path, key: &str) -> SystemTime {
    fs::metadata(dir.join(key)).expect("it is there").accessed().expect("recorded")
}

/// All objects with their lengths.
pub fn sizes(dir: &Path) -> BTreeMap<String, u64> {
    let keys = audit::objects(dir).into_iter();
    // It may go while this looks.
    keys.filter_map(|key| Some((fs::metadata(dir.join(&key)).ok()?.len(), key)))
        .map(|(size, key)| (key, size))
        .collect()
}

/// What is in a file, without a trace of having read it.
fn read(file: &Path) -> Vec<u8> {
    let flags = OFlags::NOATIME.bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(flags).open(file).expect("it is there");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("it can be read");
    bytes
}

/// Checks that every narinfo that can be read has its NAR, and all references that it had in a cache
/// of these objects.
#[track_caller]
pub fn assert_whole(dir: &Path, before: &BTreeMap<String, u64>) {
    let objects = sizes(dir);
    for key in objects.keys().filter(|key| key.ends_with(".narinfo")) {
        let text = read(&dir.join(key));
        let Ok(info) = NarInfo::parse(&text, &StoreDir::default()) else {
            continue;
        };
        assert!(objects.contains_key(&info.url), "{key} has lost its NAR");
        for reference in &info.references {
            let other = CachePath::NarInfo(reference.hash()).key();
            let lost = before.contains_key(&other) && !objects.contains_key(&other);
            assert!(!lost, "{key} has lost {other}");
        }
    }
}
