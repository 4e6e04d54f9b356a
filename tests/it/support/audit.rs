//! The content of a cache directory, checked without the daemon.

use std::fs;
use std::path::Path;

use nix_stored::nix::{CachePath, NarInfo, Sha256Hash, StoreDir};

/// The files below `dir` by their keys, without what is the daemon's own, to which
/// `nix-cache-info` belongs.
pub fn objects(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of the cache can be read") {
            let path = entry.expect("an entry can be read").path();
            let key = path.strip_prefix(dir).expect("it is below").to_str().expect("UTF-8");
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

/// Checks that every object has a name that it can have, that every NAR is what its name says, and
/// that every narinfo's NAR is there and as it says. Returns how many narinfos there are.
#[track_caller]
pub fn assert_nothing_is_false(dir: &Path) -> usize {
    assert_none_is_false(objects(dir), |key| fs::read(dir.join(key)).ok())
}

/// The same of objects wherever they are, by their keys and what is there.
#[track_caller]
pub fn assert_none_is_false(keys: Vec<String>, read: impl Fn(&str) -> Option<Vec<u8>>) -> usize {
    let mut narinfos = 0;
    for key in keys {
        let bytes = read(&key).expect("an object can be read");
        match key.parse::<CachePath>() {
            Ok(CachePath::Nar(name)) => {
                assert_eq!(
                    Sha256Hash::of(&bytes),
                    name.file_hash,
                    "{key} is not what its name says"
                );
            }
            Ok(CachePath::NarInfo(hash)) => {
                let info = NarInfo::parse(&bytes, &StoreDir::default())
                    .unwrap_or_else(|error| panic!("{key}: {error}"));
                assert_eq!(info.store_path.hash(), hash, "{key} is another's");
                let nar =
                    read(&info.url).unwrap_or_else(|| panic!("{key} has no NAR at {}", info.url));
                assert_eq!(Some(nar.len() as u64), info.file_size, "{key}: FileSize");
                assert_eq!(Some(Sha256Hash::of(&nar)), info.file_hash, "{key}: FileHash");
                narinfos += 1;
            }
            Ok(_) => {}
            Err(error) => panic!("{key} is no object: {error}"),
        }
    }
    narinfos
}

/// What lies in the staging folders: `<process>/` for a folder, `<process>/<file>` for a file.
pub fn staging(dir: &Path) -> Vec<String> {
    let staging = dir.join(".nix-stored/staging");
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the staging folder can be read");
        let names = entries.map(|entry| entry.expect("it can be read").file_name());
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

/// Checks that one process has a staging folder, and that there is nothing in it.
#[track_caller]
pub fn assert_nothing_is_staged(dir: &Path) {
    let staging = staging(dir);
    assert!(staging.len() == 1 && staging[0].ends_with('/'), "{staging:?}");
}
