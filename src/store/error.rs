//! The errors of a store. Absence is not an error.

use std::fmt;
use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::nix::narinfo;

/// A failed operation of a store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object needs disk space that must stay free.
    #[error(
        "the cache's disk has {free} bytes free, but {needed} are needed and \
         NIX_STORED_MIN_FREE_SPACE reserves {reserve}; free some space there"
    )]
    Reserve {
        /// The free space in bytes.
        free: u64,
        /// The space that the object needs, in bytes.
        needed: u64,
        /// The space that must stay free, in bytes.
        reserve: u64,
    },
    /// There is no space left for the object.
    #[error("the cache's disk is full: no space left while {doing} {key}")]
    NoSpace {
        /// The failed operation, as a participle.
        doing: &'static str,
        /// The key of the object.
        key: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A temporary failure: too many open files, too little memory, or too many concurrent changes.
    #[error("temporary failure while {doing} {key}")]
    Busy {
        /// The failed operation, as a participle.
        doing: &'static str,
        /// The key of the object.
        key: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The object store failed.
    #[error("error while {doing} {key}: the object store {failure}")]
    Remote {
        /// The failed operation, as a participle.
        doing: &'static str,
        /// The key of the object.
        key: String,
        /// The kind of failure.
        failure: RemoteFailure,
        /// The error of the request.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory at the path is missing or another one, so it is unknown whether the object
    /// exists.
    #[error(transparent)]
    Unusable(#[from] UnusableDirectory),
    /// The name of the object is taken by a directory, or the name of its directory by a file.
    #[error("cannot store {key}: {obstacle}; move it away")]
    Obstructed {
        /// The key of the object.
        key: String,
        /// The obstacle, as a clause.
        obstacle: &'static str,
    },
    /// Any other error of the disk.
    #[error("error while {doing} {key}")]
    Io {
        /// The failed operation, as a participle.
        doing: &'static str,
        /// The key of the object.
        key: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The reason why the directory is unusable.
#[derive(Debug, Clone, Error)]
#[error("the cache's directory is unusable: {0}")]
pub struct UnusableDirectory(pub(super) String);

/// The kind of a failure of an object store, after all retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteFailure {
    /// The object store did not respond in time.
    TimedOut,
    /// The object store is overloaded.
    Busy,
    /// The object store denied the request.
    Denied,
    /// The object store cannot be reached, or failed.
    Failed,
}

impl fmt::Display for RemoteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "did not respond in time",
            Self::Busy => "is overloaded",
            Self::Denied => "denied the request",
            Self::Failed => "failed",
        })
    }
}

impl StoreError {
    /// Returns the error for a stored narinfo of `size` bytes, more than [`narinfo::MAX_SIZE`].
    pub(crate) fn narinfo_too_large(key: &str, size: u64) -> Self {
        let limit = narinfo::MAX_SIZE;
        let why = format!("it has {size} bytes; the limit for a narinfo is {limit} bytes");
        Self::new("reading", key, io::Error::other(why))
    }

    /// Returns the error for an object that other processes changed during each attempt to change
    /// it.
    pub(crate) fn too_many_changes(key: &str) -> Self {
        let why = "other processes keep changing it";
        Self::Busy { doing: "changing", key: key.to_owned(), source: io::Error::other(why) }
    }

    /// Classifies an error of the system that occurred while `doing` something with `key`.
    pub(crate) fn new(doing: &'static str, key: &str, source: impl Into<io::Error>) -> Self {
        let (key, source) = (key.to_owned(), source.into());
        if let Some(unusable) = source.get_ref().and_then(|inner| inner.downcast_ref()) {
            return Self::Unusable(UnusableDirectory::clone(unusable));
        }
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
        let busy = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        match Errno::from_io_error(&source) {
            Some(errno) if full.contains(&errno) => Self::NoSpace { doing, key, source },
            Some(errno) if busy.contains(&errno) => Self::Busy { doing, key, source },
            _ => Self::Io { doing, key, source },
        }
    }

    /// Whether a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Remote { .. } | Self::Unusable(_))
    }

    /// Classifies an error of the system that occurred during the publication of an upload.
    pub(super) fn of_upload(doing: &'static str, key: &str, source: io::Error) -> Self {
        let obstacle = match Errno::from_io_error(&source) {
            Some(Errno::ISDIR) => "a directory has this name",
            Some(Errno::NOTDIR) => "a file has the name of its directory",
            _ => return Self::new(doing, key, source),
        };
        Self::Obstructed { key: key.to_owned(), obstacle }
    }
}
