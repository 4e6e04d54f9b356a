//! Pins: store paths that stay, with everything they need, under a name that an operator gave.

use std::collections::HashSet;
use std::fmt::Write as _;

use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;
use tracing::warn;

use crate::cache::Cache;
use crate::nix::{CachePath, StorePath, StorePathHash};
use crate::store::StoreError;

/// The folder of the notes that are pins.
const FOLDER: &str = "pins";

/// What stays under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// Its name.
    pub name: String,
    /// What it pins; a path that is not here yet will be kept when it comes.
    #[serde(serialize_with = "as_text")]
    pub paths: Vec<StorePath>,
}

/// A pin that could not be set, taken away or read.
#[derive(Debug, Error)]
pub enum PinError {
    /// Not a name for a pin.
    #[error(
        "“{0}” is not a name for a pin: it is a file's name, of letters, digits and . _ + - and \
         does not begin with a dot"
    )]
    Name(String),
    /// Nothing to pin.
    #[error("pin what? name at least one store path")]
    Nothing,
    /// A pin that does not say what it pins. Nothing is collected then: it could be anything.
    #[error("the pin {name} has a line that is not a store path: “{line}”; mend or unpin it")]
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

impl Cache {
    /// Every pin, by name.
    pub async fn pins(&self) -> Result<Vec<Pin>, PinError> {
        let mut pins = Vec::new();
        for name in self.store.notes(FOLDER).await? {
            if check_name(&name).is_err() {
                warn!("{name} in the folder of pins has no name of a pin, and pins nothing");
                continue;
            }
            if let Some(text) = self.store.note(&format!("{FOLDER}/{name}")).await? {
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
            let whole = self.info.store_dir.parse_path(line);
            whole
                .or_else(|_| line.parse())
                .map_err(|_| PinError::Line { name: name.to_owned(), line: line.to_owned() })
        });
        parsed.collect()
    }

    /// Pins `paths` under `name`, in place of what it pinned before. False if it is a new pin.
    pub async fn pin(&self, name: &str, paths: &[StorePath]) -> Result<bool, PinError> {
        check_name(name)?;
        if paths.is_empty() {
            return Err(PinError::Nothing);
        }
        let mut text = String::new();
        for path in paths {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", self.info.store_dir.join(path));
        }
        let replaced =
            self.store.set_note(&format!("{FOLDER}/{name}"), Some(Bytes::from(text))).await?;
        self.use_closures(paths).await?;
        Ok(replaced)
    }

    /// A collection that is at work already does not know of a new pin, but it gives way to use.
    async fn use_closures(&self, roots: &[StorePath]) -> Result<(), PinError> {
        let mut seen = HashSet::new();
        let mut stack: Vec<StorePathHash> = roots.iter().map(StorePath::hash).collect();
        while let Some(hash) = stack.pop() {
            if !seen.insert(hash) {
                continue;
            }
            let narinfo = CachePath::NarInfo(hash);
            let Some(named) = self.read_named(&narinfo).await? else {
                continue;
            };
            self.rely_on(&narinfo).await?;
            for nar in named.nars {
                self.rely_on(&CachePath::Nar(nar)).await?;
            }
            stack.extend(named.references);
        }
        Ok(())
    }

    /// Takes a pin away. False if there was none.
    pub async fn unpin(&self, name: &str) -> Result<bool, PinError> {
        check_name(name)?;
        Ok(self.store.set_note(&format!("{FOLDER}/{name}"), None).await?)
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
    fn a_pin_has_the_name_of_a_file() {
        for name in ["a", "release-25.11", "+_", &"x".repeat(200)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\n", &"x".repeat(201)] {
            assert!(matches!(check_name(name), Err(PinError::Name(_))), "{name}");
        }
    }
}
