//! Pins: named sets of store paths that are kept with all their references.

use std::collections::HashSet;
use std::fmt::Write as _;

use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;
use tracing::warn;

use crate::cache::Cache;
use crate::nix::{CachePath, StorePath, StorePathHash};
use crate::store::StoreError;

/// The folder of the pins among the private files of the store.
const PINS_FOLDER: &str = "pins";

/// A named set of pinned store paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// The name of the pin.
    pub name: String,
    /// The pinned paths. They need not be in the cache yet.
    #[serde(serialize_with = "as_text")]
    pub paths: Vec<StorePath>,
}

/// A failure to set, remove or read a pin.
#[derive(Debug, Error)]
pub enum PinError {
    /// The name is not valid for a pin.
    #[error(
        "“{0}” is not a valid name for a pin; use letters, digits and . _ + -, without a dot at \
         the beginning"
    )]
    Name(String),
    /// There is no store path to pin.
    #[error("no store path to pin; name at least one")]
    Nothing,
    /// A line of a pin is not a store path. Collections remove nothing then, because the line could
    /// mean any path.
    #[error("the pin {name} has a line that is not a store path: “{line}”; fix or unpin it")]
    Line {
        /// The pin.
        name: String,
        /// The line.
        line: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The pins of a cache.
pub struct Pins<'a> {
    cache: &'a Cache,
}

impl<'a> Pins<'a> {
    /// Creates access to the pins of `cache`.
    pub fn of(cache: &'a Cache) -> Self {
        Self { cache }
    }

    /// Returns all pins, by name.
    pub async fn list(&self) -> Result<Vec<Pin>, PinError> {
        let files = self.cache.store().private_files();
        let mut pins = Vec::new();
        for name in files.list(PINS_FOLDER).await? {
            if check_name(&name).is_err() {
                warn!(
                    name,
                    "ignored a file in the pins directory: its name is not valid for a pin"
                );
                continue;
            }
            if let Some(text) = files.read(&format!("{PINS_FOLDER}/{name}")).await? {
                let paths = self.parse(&name, &text)?;
                pins.push(Pin { name, paths });
            }
        }
        Ok(pins)
    }

    fn parse(&self, name: &str, text: &[u8]) -> Result<Vec<StorePath>, PinError> {
        let text = String::from_utf8_lossy(text);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines = lines.filter(|line| !line.starts_with('#'));
        let parsed = lines.map(|line| {
            let full_path = self.cache.info().store_dir.parse_path(line);
            full_path
                .or_else(|_| line.parse())
                .map_err(|_| PinError::Line { name: name.to_owned(), line: line.to_owned() })
        });
        parsed.collect()
    }

    /// Sets the pin `name` to `paths`. Returns false if it is a new pin.
    pub async fn set(&self, name: &str, paths: &[StorePath]) -> Result<bool, PinError> {
        check_name(name)?;
        if paths.is_empty() {
            return Err(PinError::Nothing);
        }
        let mut text = String::new();
        for path in paths {
            // Writing to a string is infallible.
            let _ = writeln!(text, "{}", self.cache.info().store_dir.join(path));
        }
        let replaced = self
            .cache
            .store()
            .private_files()
            .write(&format!("{PINS_FOLDER}/{name}"), Bytes::from(text))
            .await?;
        self.touch_closures(paths).await?;
        Ok(replaced)
    }

    /// Records a use of all paths in the closures of `roots`. A running collection has read the
    /// pins already, but it keeps paths that are used meanwhile.
    async fn touch_closures(&self, roots: &[StorePath]) -> Result<(), PinError> {
        let mut seen = HashSet::new();
        let mut stack: Vec<StorePathHash> = roots.iter().map(StorePath::hash).collect();
        while let Some(hash) = stack.pop() {
            if !seen.insert(hash) {
                continue;
            }
            let narinfo = CachePath::NarInfo(hash);
            let Some(named) = self.cache.read_named(&narinfo).await? else {
                continue;
            };
            self.cache.touch_if_present(&narinfo).await?;
            for nar in named.nars {
                self.cache.touch_if_present(&CachePath::Nar(nar)).await?;
            }
            stack.extend(named.references);
        }
        Ok(())
    }

    /// Removes a pin. Returns false if there was none.
    pub async fn remove(&self, name: &str) -> Result<bool, PinError> {
        check_name(name)?;
        Ok(self.cache.store().private_files().remove(&format!("{PINS_FOLDER}/{name}")).await?)
    }
}

fn check_name(name: &str) -> Result<(), PinError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(allowed)
    {
        return Ok(());
    }
    Err(PinError::Name(name.to_owned()))
}

fn as_text<S: serde::Serializer>(paths: &[StorePath], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(paths.iter().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_are_visible_file_names_of_safe_characters() {
        for name in ["a", "release-25.11", "+_", &"x".repeat(200)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\n", &"x".repeat(201)] {
            assert!(matches!(check_name(name), Err(PinError::Name(_))), "{name}");
        }
    }
}
