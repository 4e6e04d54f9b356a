//! Store paths given as command line arguments.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::nix::{StoreDir, StorePath, StorePathHash};

/// Invalid command line argument. The program exits with `EXIT_USAGE`.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct UsageError(pub String);

/// Maximum number of symlinks to follow (`MAXSYMLINKS` of Linux).
const MAX_LINKS: usize = 40;

/// Resolves an argument to a store path. The argument is a complete store path, its base name, a file
/// inside the store path, or a symlink to one of these, such as the `./result` of `nix build`.
pub(super) fn store_path(text: &str, store_dir: &StoreDir) -> Result<StorePath, UsageError> {
    let usage_error = |why: String| {
        UsageError(format!(
            "“{text}” is not a store path: {why}; pass {store_dir}/<hash>-<name>, or a symlink to it"
        ))
    };
    // A base name always means a path in the cache, even if a file of this name exists.
    if let Ok(path) = text.parse() {
        return Ok(path);
    }
    let mut at = std::path::absolute(text).map_err(|error| usage_error(error.to_string()))?;
    for _ in 0..MAX_LINKS {
        if let Ok(inside) = at.strip_prefix(store_dir.as_str()) {
            let name = inside.iter().next().unwrap_or_default().to_string_lossy();
            return name.parse().map_err(|error: crate::nix::store_path::ParseStorePathError| {
                usage_error(error.to_string())
            });
        }
        match std::fs::read_link(&at) {
            Ok(target) => at = resolve_link(&at, &target),
            Err(_) => break,
        }
    }
    Err(usage_error(format!("it is not in {store_dir}")))
}

/// Like [`store_path`], but also accepts a hash part alone.
pub(super) fn hash_part(text: &str, store_dir: &StoreDir) -> Result<StorePathHash, UsageError> {
    text.parse().or_else(|_| store_path(text, store_dir).map(|path| path.hash()))
}

/// Resolves the `target` of the symlink at `link`.
fn resolve_link(link: &Path, target: &Path) -> PathBuf {
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
