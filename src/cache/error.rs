//! What can go wrong in a cache, in the words of its domain. No status codes here: `http::error`
//! has the one table of them.

use std::time::Duration;

use thiserror::Error;

use crate::nix::narinfo::ParseNarInfoError;
use crate::nix::{Sha256Hash, StoreDir, StorePathHash};
use crate::store::StoreError;

/// A read that failed. Absence is not an error.
#[derive(Debug, Error)]
pub enum GetError {
    /// The store has trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An upload that was not taken.
#[derive(Debug, Error)]
pub enum PutError {
    /// The body did not arrive whole.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The body has another length than was announced.
    #[error("the upload was announced with {declared} bytes and has {actual}")]
    Length {
        /// The length in `Content-Length`.
        declared: u64,
        /// The length of the body.
        actual: u64,
    },
    /// The body is larger than this kind of object may be.
    #[error("the upload is larger than the {limit} bytes that are allowed here")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// `nix-cache-info` for another store dir.
    #[error(
        "this cache is for the store dir {ours}, and the uploaded nix-cache-info is for {}",
        theirs.as_deref().unwrap_or("none")
    )]
    StoreDir {
        /// Our store dir.
        ours: StoreDir,
        /// The one that was uploaded.
        theirs: Option<String>,
    },
    /// The narinfo cannot be read.
    #[error(transparent)]
    NarInfo(#[from] ParseNarInfoError),
    /// The narinfo is of another store path than its name says.
    #[error("the narinfo is named {expected} and its StorePath has the hash part {actual}")]
    HashPart {
        /// The hash part in the name.
        expected: StorePathHash,
        /// The hash part of its `StorePath`.
        actual: StorePathHash,
    },
    /// The body is not what its name says.
    #[error(
        "the uploaded file has the hash {actual} and its name says {expected}: it was damaged on \
         the way, upload it again"
    )]
    FileHash {
        /// The hash in the name.
        expected: Sha256Hash,
        /// The hash of the body.
        actual: Sha256Hash,
    },
    /// The store has trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A body that did not arrive whole.
#[derive(Debug, Error)]
pub enum BodyError {
    /// The connection ended, or what came is not HTTP.
    #[error("the upload was cut short")]
    CutShort(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came for a while.
    #[error("nothing of the upload arrived for {} seconds", .0.as_secs())]
    Stalled(Duration),
}
