//! What can go wrong with a store. Absence is not an error.

use std::io;

use rustix::io::Errno;
use thiserror::Error;

/// An operation on a store that failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no space left for the object.
    #[error("no space left while {doing} {key}")]
    NoSpace {
        /// What was being done, as a participle.
        doing: &'static str,
        /// The object's key.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// Any other trouble with the disk.
    #[error("{doing} {key}")]
    Io {
        /// What was being done, as a participle.
        doing: &'static str,
        /// The object's key.
        key: String,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Sorts an error of the system that came while `doing` something with `key`.
    pub(super) fn new(doing: &'static str, key: &str, source: impl Into<io::Error>) -> Self {
        let (key, source) = (key.to_owned(), source.into());
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
        match Errno::from_io_error(&source) {
            Some(errno) if full.contains(&errno) => Self::NoSpace { doing, key, source },
            _ => Self::Io { doing, key, source },
        }
    }
}
