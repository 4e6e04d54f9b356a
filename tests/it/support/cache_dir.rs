//! The content of a cache directory, checked without the daemon.

use std::fs;
use std::path::Path;

use nix_stored::nix::{CachePath, NarInfo, Sha256Hash, StoreDir};

/// The keys of the objects in `dir`, without the daemon's own files, such as `nix-cache-info`.
pub fn objects(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of the cache can be read") {
            let path = entry.expect("an entry can be read").path();
            let key = path
                .strip_prefix(dir)
                .expect("the path is in the directory")
                .to_str()
                .expect("UTF-8");
            if [".nix-stored", "nix-cache-info"].contains(&key) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(key.to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Checks that every object has a valid name, that every NAR matches its name, and that every
/// narinfo has its NAR and matches it. Returns the number of narinfos.
#[track_caller]
pub fn assert_consistent(dir: &Path) -> usize {
    assert_objects_consistent(objects(dir), |key| fs::read(dir.join(key)).ok())
}

/// Like [`assert_consistent`], for objects of any store.
#[track_caller]
pub fn assert_objects_consistent(
    keys: Vec<String>,
    read: impl Fn(&str) -> Option<Vec<u8>>,
) -> usize {
    let mut narinfos = 0;
    for key in keys {
        let bytes = read(&key).expect("an object can be read");
        match key.parse::<CachePath>() {
            Ok(CachePath::Nar(name)) => {
                assert_eq!(Sha256Hash::of(&bytes), name.file_hash, "{key} does not match its name");
            }
            Ok(CachePath::NarInfo(hash)) => {
                let info = NarInfo::parse(&bytes, &StoreDir::default())
                    .unwrap_or_else(|error| panic!("{key}: {error}"));
                assert_eq!(info.store_path.hash(), hash, "{key} is the narinfo of another path");
                let nar =
                    read(&info.url).unwrap_or_else(|| panic!("{key} has no NAR at {}", info.url));
                assert_eq!(Some(nar.len() as u64), info.file_size, "{key}: FileSize");
                assert_eq!(Some(Sha256Hash::of(&nar)), info.file_hash, "{key}: FileHash");
                narinfos += 1;
            }
            Ok(_) => {}
            Err(error) => panic!("{key} is not an object: {error}"),
        }
    }
    narinfos
}

/// The content of the staging folders: `<process>/` for a folder, `<process>/<file>` for a file.
pub fn staging(dir: &Path) -> Vec<String> {
    let staging = dir.join(".nix-stored/staging");
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the staging folder can be read");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        names.map(|name| name.into_string().expect("UTF-8")).collect()
    };
    let mut found = Vec::new();
    for process in names(&staging) {
        let files = names(&staging.join(&process));
        found.extend(files.iter().map(|file| format!("{process}/{file}")));
        found.push(format!("{process}/"));
    }
    found
}

/// Checks that there is one staging folder, and that it is empty.
#[track_caller]
pub fn assert_staging_is_empty(dir: &Path) {
    let staging = staging(dir);
    assert!(staging.len() == 1 && staging[0].ends_with('/'), "{staging:?}");
}
