//! What can go wrong in a cache, in the words of its domain. No status codes here: `http::error`
//! has the one table of them.

use std::time::Duration;

use thiserror::Error;

use super::unpack::UnpackError;
use crate::nix::narinfo::ParseNarInfoError;
use crate::nix::{Compression, Sha256Hash, StoreDir, StorePath, StorePathHash};
use crate::store::StoreError;

/// A read that failed. Absence is not an error.
#[derive(Debug, Error)]
pub enum GetError {
    /// The store has trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not here, and an upstream that might have it is in trouble.
    #[cfg(feature = "upstream")]
    #[error("it is not here, and the upstream {0}")]
    Upstream(#[from] super::upstream::UpstreamError),
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
    /// The body is not in the encoding that its header names.
    #[error("the upload is not in its Content-Encoding, {encoding}")]
    Encoding {
        /// The encoding.
        encoding: Compression,
        /// What the decoder said.
        source: std::io::Error,
    },
    /// The body is in an encoding without a decoder, or one that does not fit the object.
    #[error("the upload's Content-Encoding is {0}, which this cache cannot decode here")]
    NoDecoder(Compression),
    /// The NAR does not unpack.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The narinfo is of a NAR that is not in this cache by Nix's naming.
    #[error("the narinfo's URL is “{0}”; it must be nar/<file hash>.nar… of a NAR in this cache")]
    NarElsewhere(String),
    /// The NAR is not here.
    #[error("the narinfo's NAR {0} is not here; upload it first")]
    NarMissing(String),
    /// The NAR that is here is not what its name says any more.
    #[error(
        "the narinfo's NAR {0} was damaged in this cache and has been put aside; upload it again"
    )]
    NarDamaged(String),
    /// The NAR was replaced while it was read.
    #[error(
        "the narinfo's NAR {0} was replaced in this cache a moment ago; upload the narinfo again"
    )]
    NarChanged(String),
    /// The NAR that is here cannot be read.
    #[error("cannot read {key}")]
    Read {
        /// The NAR's key.
        key: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A field of the narinfo and the NAR differ.
    #[error("the narinfo's {field} is {stated} and that of its NAR is {actual}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What the narinfo says.
        stated: String,
        /// What is true.
        actual: String,
    },
    /// No signature counts.
    #[error(
        "the narinfo has no valid signature by a key that this cache trusts ({trusted}); it has {}",
        if found.is_empty() { "none at all" } else { found }
    )]
    Signature {
        /// The names of the keys that are trusted.
        trusted: String,
        /// The names of the keys that are said to have signed.
        found: String,
    },
    /// A reference is not here.
    #[error("the narinfo refers to {0}, which is not here; upload it first")]
    Reference(StorePath),
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
