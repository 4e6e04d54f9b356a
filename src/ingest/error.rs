//! The errors of uploads. `http::error` has the only table of their status codes.

use std::time::Duration;

use thiserror::Error;

use crate::nix::narinfo::ParseNarInfoError;
use crate::nix::{Compression, Sha256Hash, StoreDir, StorePath, StorePathHash};
use crate::store::StoreError;
use crate::unpack::UnpackError;

/// A refused or failed upload.
#[derive(Debug, Error)]
pub enum PutError {
    /// The body is incomplete.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The length of the body differs from the announced one.
    #[error("the upload was announced with {declared} bytes, but has {actual}")]
    Length {
        /// The length in `Content-Length`.
        declared: u64,
        /// The length of the body.
        actual: u64,
    },
    /// The body is larger than this kind of object may be.
    #[error("the upload is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// `nix-cache-info` for another store dir.
    #[error(
        "the store directory of this cache is {ours}, but that of the uploaded nix-cache-info \
         is {}",
        theirs.as_deref().unwrap_or("none")
    )]
    StoreDir {
        /// The store directory of this cache.
        ours: StoreDir,
        /// The uploaded store directory.
        theirs: Option<String>,
    },
    /// The narinfo does not parse.
    #[error(transparent)]
    NarInfo(#[from] ParseNarInfoError),
    /// The narinfo is of another store path than its name.
    #[error("the narinfo has the name {expected}, but its StorePath has the hash part {actual}")]
    HashPart {
        /// The hash part in the name.
        expected: StorePathHash,
        /// The hash part of its `StorePath`.
        actual: StorePathHash,
    },
    /// The hash of the body differs from the one in its name.
    #[error(
        "the uploaded file has the hash {actual}, but its name has {expected}: it was damaged in \
         transit; upload it again"
    )]
    FileHash {
        /// The hash in the name.
        expected: Sha256Hash,
        /// The hash of the body.
        actual: Sha256Hash,
    },
    /// The body cannot be decoded by its `Content-Encoding`.
    #[error("the upload cannot be decoded by its Content-Encoding, {encoding}")]
    Encoding {
        /// The encoding.
        encoding: Compression,
        /// The error of the decoder.
        source: std::io::Error,
    },
    /// There is no decoder for the encoding, or objects of this kind may not have it.
    #[error("unsupported Content-Encoding {0}; upload the object without it")]
    NoDecoder(Compression),
    /// The NAR does not unpack.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The URL of the narinfo is not the name of a NAR in this cache.
    #[error(
        "the narinfo's URL is “{0}”; it must be the name of a NAR in this cache, nar/<file hash>.nar…"
    )]
    NarElsewhere(String),
    /// The NAR is not in this cache.
    #[error("the narinfo's NAR {0} is not in this cache; upload it first")]
    NarMissing(String),
    /// The stored NAR no longer matches its name.
    #[error(
        "the narinfo's NAR {0} was damaged in this cache and has been quarantined; upload it again"
    )]
    NarDamaged(String),
    /// The NAR was replaced while it was read.
    #[error(
        "the narinfo's NAR {0} was replaced in this cache a moment ago; upload the narinfo again"
    )]
    NarChanged(String),
    /// The stored NAR cannot be read.
    #[error("cannot read {key}")]
    Read {
        /// The key of the NAR.
        key: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A field of the narinfo does not match the NAR.
    #[error("the narinfo's {field} is {stated} and that of its NAR is {actual}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// The value in the narinfo.
        stated: String,
        /// The value of the NAR.
        actual: String,
    },
    /// No signature is valid.
    #[error(
        "the narinfo has no valid signature by a key that this cache trusts ({trusted}); it has {}",
        if found.is_empty() { "none at all" } else { found }
    )]
    Signature {
        /// The names of the trusted keys.
        trusted: String,
        /// The key names in the signatures.
        found: String,
    },
    /// A reference is not in this cache.
    #[error("the narinfo refers to {0}, which is not in this cache; upload {0} first")]
    Reference(StorePath),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An incomplete body.
#[derive(Debug, Error)]
pub enum BodyError {
    /// The connection ended, or the body is not valid HTTP.
    #[error("the upload was cut short")]
    CutShort(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No byte arrived for a while.
    #[error("no byte of the upload arrived for {} seconds", .0.as_secs())]
    Stalled(Duration),
}
