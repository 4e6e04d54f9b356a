//! A cache directory, written file by file with known times.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix_stored::nix::cache_path::{NarExtension, NarName};
use nix_stored::nix::{CachePath, NarInfo, Sha256Hash, StoreDir, StorePath, StorePathHash};
use rustix::fs::OFlags;

use crate::support::cache_dir;

pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// The current time, in a precision that every file system supports.
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

/// The text of a narinfo, made longer by `length`.
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

/// Writes an object with the times of an upload and last use at `used`.
pub fn put(dir: &Path, key: &str, bytes: impl AsRef<[u8]>, used: SystemTime) {
    let file = dir.join(key);
    fs::create_dir_all(file.parent().expect("the path is in the cache")).expect("created");
    fs::write(file, bytes).expect("written");
    set_used(dir, key, used);
}

/// Writes a path with its own NAR, last used at `used`.
pub fn put_path(dir: &Path, number: usize, references: &[usize], used: SystemTime) {
    put(dir, &narinfo(number), narinfo_text(number, number, references, None, 0), used);
    put(dir, &nar(number), format!("the NAR of path {number}"), used);
}

/// Sets the times of an object to `used`.
pub fn set_used(dir: &Path, key: &str, used: SystemTime) {
    set_times(dir, key, FileTimes::new().set_accessed(used).set_modified(used));
}

pub fn set_times(dir: &Path, key: &str, times: FileTimes) {
    let file = File::options().write(true).open(dir.join(key)).expect("present");
    file.set_times(times).expect("the owner may change it");
}

/// The recorded last use of an object.
pub fn used(dir: &Path, key: &str) -> SystemTime {
    fs::metadata(dir.join(key)).expect("present").accessed().expect("recorded")
}

/// All objects with their sizes.
pub fn sizes(dir: &Path) -> BTreeMap<String, u64> {
    let keys = cache_dir::objects(dir).into_iter();
    // A file may be removed meanwhile.
    keys.filter_map(|key| Some((fs::metadata(dir.join(&key)).ok()?.len(), key)))
        .map(|(size, key)| (key, size))
        .collect()
}

/// Reads a file without changing its access time.
fn read(file: &Path) -> Vec<u8> {
    let flags = OFlags::NOATIME.bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(flags).open(file).expect("present");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("readable");
    bytes
}

/// Checks that every readable narinfo has its NAR, and all references that it had in a cache with
/// these objects.
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
