//! Keys of NARs that other programs have named.

use super::fs::OWN_FOLDER;

/// The key of a NAR in [`Store::get_foreign`](super::Store::get_foreign), by the URL in its narinfo.
/// Returns `None` if the URL is not relative to the cache.
pub fn foreign_key(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (plain && !path.contains(':') && !path.starts_with(OWN_FOLDER)).then(|| path.to_owned())
}
