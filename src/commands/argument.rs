//! Store paths as people name them on a command line.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::nix::{StoreDir, StorePath, StorePathHash};

/// An argument that cannot be used as it is.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Unusable(pub String);

/// How many symlinks are followed (`MAXSYMLINKS` of Linux).
const MAX_LINKS: usize = 40;

/// The whole store path that an argument names: in full or as its base name, as something inside
/// it, or as a symlink to one of those, such as the `./result` that `nix build` makes.
pub(super) fn store_path(text: &str, store_dir: &StoreDir) -> Result<StorePath, Unusable> {
    let no_store_path = |why: String| {
        Unusable(format!(
            "“{text}” is no store path: {why}; name it like {store_dir}/<hash>-<name>, or a symlink \
             to one"
        ))
    };
    // Not looked for among the files: a base name names a path in the cache.
    if let Ok(path) = text.parse() {
        return Ok(path);
    }
    let mut at = std::path::absolute(text).map_err(|error| no_store_path(error.to_string()))?;
    for _ in 0..MAX_LINKS {
        if let Ok(inside) = at.strip_prefix(store_dir.as_str()) {
            let name = inside.iter().next().unwrap_or_default().to_string_lossy();
            return name.parse().map_err(|error: crate::nix::store_path::ParseStorePathError| {
                no_store_path(error.to_string())
            });
        }
        match std::fs::read_link(&at) {
            Ok(target) => at = beside(&at, &target),
            Err(_) => break,
        }
    }
    Err(no_store_path(format!("it is not in {store_dir}")))
}

/// Like [`store_path`], and a hash part alone is enough.
pub(super) fn hash_part(text: &str, store_dir: &StoreDir) -> Result<StorePathHash, Unusable> {
    text.parse().or_else(|_| store_path(text, store_dir).map(|path| path.hash()))
}

/// Where a symlink at `link` leads to.
fn beside(link: &Path, target: &Path) -> PathBuf {
    let mut at = link.parent().unwrap_or(Path::new("/")).to_owned();
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => {
                at.pop();
            }
            part => at.push(part),
        }
    }
    at
}
