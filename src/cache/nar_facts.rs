//! The verified facts about a NAR, and the comparison of a narinfo with them.

use bytes::Bytes;

use crate::ingest::PutError;
use crate::nix::cache_path::NarName;
use crate::nix::{Compression, NarInfo, Sha256Hash};
use crate::unpack::{UnpackError, Unpacked};

/// The verified facts about a NAR, kept in memory for its narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NarFacts {
    /// The length of the file, in bytes.
    pub file_size: u64,
    pub contents: NarContents,
}

/// The facts about a NAR, and the entity tag of its file.
#[derive(Debug, Clone)]
pub(crate) struct KnownNarFacts {
    pub facts: NarFacts,
    pub etag: Bytes,
}

/// The verified contents of a NAR file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NarContents {
    /// The file was unpacked, and is a NAR.
    Unpacked(Unpacked),
    /// The file has the magic number of this compression, for which there is no decoder.
    NoDecoder(Compression),
    /// The file was not unpacked, because `NIX_STORED_VERIFY` is `file`.
    NotRead,
}

impl NarContents {
    /// Converts the result of unpacking. Only a compression without a decoder passes without being
    /// unpacked, if the file has this format.
    pub(crate) fn of(unpacked: Option<Result<Unpacked, UnpackError>>) -> Result<Self, UnpackError> {
        match unpacked {
            None => Ok(Self::NotRead),
            Some(Ok(unpacked)) => Ok(Self::Unpacked(unpacked)),
            Some(Err(UnpackError::NoDecoder(compression))) => Ok(Self::NoDecoder(compression)),
            Some(Err(error)) => Err(error),
        }
    }

    /// SHA-256 of the NAR in the file `name`, if it was unpacked.
    pub(crate) fn nar_hash(&self, name: NarName) -> Option<Sha256Hash> {
        match self {
            Self::Unpacked(unpacked) => Some(unpacked.nar_hash.unwrap_or(name.file_hash)),
            Self::NoDecoder(_) | Self::NotRead => None,
        }
    }
}

/// Compares all fields of a narinfo that describe its NAR with the facts.
pub(crate) fn check_against_nar(
    info: &NarInfo,
    name: NarName,
    facts: NarFacts,
) -> Result<(), PutError> {
    check("FileHash", info.file_hash.unwrap_or(name.file_hash), name.file_hash)?;
    check("FileSize", info.file_size.unwrap_or(facts.file_size), facts.file_size)?;
    check_compression(&info.compression, name, facts.contents)?;
    if let NarContents::Unpacked(unpacked) = facts.contents {
        check("NarHash", info.nar_hash, unpacked.nar_hash.unwrap_or(name.file_hash))?;
        check("NarSize", info.nar_size, unpacked.nar_size)?;
    }
    Ok(())
}

fn check<T: PartialEq + std::fmt::Display>(
    field: &'static str,
    stated: T,
    actual: T,
) -> Result<(), PutError> {
    if stated == actual {
        return Ok(());
    }
    Err(PutError::Field { field, stated: stated.to_string(), actual: actual.to_string() })
}

/// Compares the compression in a narinfo with that of its NAR, or with the extension of the NAR's name
/// if the file was not unpacked.
fn check_compression(stated: &str, name: NarName, contents: NarContents) -> Result<(), PutError> {
    let actual = match contents {
        NarContents::Unpacked(Unpacked { compression, .. })
        | NarContents::NoDecoder(compression) => Some(compression),
        NarContents::NotRead => None,
    };
    let fits = stated.parse::<Compression>().is_ok_and(|stated| match actual {
        Some(actual) => stated == actual,
        None => stated.extension() == name.extension,
    });
    if fits {
        return Ok(());
    }
    let actual = match actual {
        Some(actual) => actual.to_string(),
        None => format!("one that goes with the name {name}"),
    };
    Err(PutError::Field { field: "Compression", stated: stated.to_owned(), actual })
}
