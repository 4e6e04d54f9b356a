//! Keys of NARs under names that Nix does not use.

use super::fs::OWN_FOLDER;

/// Returns the key of a NAR for [`Store::get_foreign`](super::Store::get_foreign), given the URL in
/// its narinfo, or `None` if the URL is not relative to the cache.
pub fn foreign_key(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (plain && !path.contains(':') && !path.starts_with(OWN_FOLDER)).then(|| path.to_owned())
}
