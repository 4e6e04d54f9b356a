//! What can go wrong with a store. Absence is not an error.

use std::fmt;
use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::nix::narinfo;

/// An operation on a store that failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object would take space that shall stay free.
    #[error(
        "the cache's disk has {free} bytes free, {needed} are needed and NIX_STORED_MIN_FREE_SPACE \
         keeps {reserve}; free some space or ask for it to be freed"
    )]
    Reserve {
        /// What is free, in bytes.
        free: u64,
        /// What the object needs, in bytes.
        needed: u64,
        /// What shall stay free, in bytes.
        reserve: u64,
    },
    /// There is no space left for the object.
    #[error("the cache's disk is full: no space left while {doing} {key}")]
    NoSpace {
        /// What was being done, as a participle.
        doing: &'static str,
        /// The object's key.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// There are too many open files, or too little memory: it may work again in a moment.
    #[error("too much at once while {doing} {key}")]
    Busy {
        /// What was being done, as a participle.
        doing: &'static str,
        /// The object's key.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// The object store on the other side of a network has trouble.
    #[error("{doing} {key}: the object store {trouble}")]
    Remote {
        /// What was being done, as a participle.
        doing: &'static str,
        /// The object's key.
        key: String,
        /// What kind of trouble.
        trouble: RemoteTrouble,
        /// What came of the request.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory is not where it was: what is asked for may be in the one that belongs there.
    #[error(transparent)]
    Unusable(#[from] UnusableDirectory),
    /// Something else has the object's name, or that of its folder.
    #[error("{key} cannot be stored: {obstacle}; move it away")]
    Obstructed {
        /// The object's key.
        key: String,
        /// What is there.
        obstacle: &'static str,
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

/// A directory that cannot be used, and why.
#[derive(Debug, Clone, Error)]
#[error("the cache's directory cannot be used: {0}")]
pub struct UnusableDirectory(pub(super) String);

/// What can be the matter with an object store, after it was asked several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteTrouble {
    /// It did not answer in time.
    TimedOut,
    /// It has too much to do.
    Busy,
    /// It does not let us.
    Denied,
    /// It cannot be reached, or failed.
    Failed,
}

impl fmt::Display for RemoteTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "did not answer in time",
            Self::Busy => "has too much to do",
            Self::Denied => "does not allow it",
            Self::Failed => "failed",
        })
    }
}

impl StoreError {
    /// A stored narinfo of `size` bytes, more than [`narinfo::MAX_SIZE`].
    pub(crate) fn narinfo_too_large(key: &str, size: u64) -> Self {
        let limit = narinfo::MAX_SIZE;
        let why = format!("it has {size} bytes, and a narinfo has {limit} at most");
        Self::new("reading", key, io::Error::other(why))
    }

    /// An object that others have changed whenever it was to be changed.
    pub(crate) fn changes_all_the_time(key: &str) -> Self {
        let why = "others change it all the time";
        Self::Busy { doing: "changing", key: key.to_owned(), source: io::Error::other(why) }
    }

    /// Sorts an error of the system that came while `doing` something with `key`.
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

    /// Whether it may be over in a moment without anybody's doing.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Remote { .. } | Self::Unusable(_))
    }

    /// Sorts an error of the system that came while an upload got its name.
    pub(super) fn of_upload(doing: &'static str, key: &str, source: io::Error) -> Self {
        let obstacle = match Errno::from_io_error(&source) {
            Some(Errno::ISDIR) => "a directory has its name",
            Some(Errno::NOTDIR) => "a file has the name of its folder",
            _ => return Self::new(doing, key, source),
        };
        Self::Obstructed { key: key.to_owned(), obstacle }
    }
}
