//! Unpacks compressed NARs, and determines their format, hash and size.

use std::cell::Cell;
use std::io::{self, BufRead};

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::budget::Allowance;
use super::decoder::{decoder, more_memory, needs_memory};
use super::inspect_reader::InspectReader;
use crate::nix::cache_path::NarExtension;
use crate::nix::nar::{NarChecker, NarError};
use crate::nix::{Compression, Sha256Hash};

/// The size of the buffer for unpacked bytes.
const UNPACK_BUFFER_SIZE: usize = 64 * 1024;

/// The facts about an unpacked NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// The compression of the file.
    pub compression: Compression,
    /// SHA-256 of the NAR, or `None` if the file is not compressed: then it is that of the file.
    pub nar_hash: Option<Sha256Hash>,
    /// The length of the NAR, in bytes.
    pub nar_size: u64,
}

/// The reason why a NAR cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// There is no decoder, so nothing is known about the NAR.
    #[error("there is no decoder for {0}")]
    NoDecoder(Compression),
    /// The name has no extension, and the format is not recognized.
    #[error(
        "the file is neither a NAR nor compressed by gzip or lzma, and its name has no other \
         extension"
    )]
    Unknown,
    /// The decoder failed.
    #[error("the file is not valid {compression} data")]
    Decode {
        /// The expected compression.
        compression: Compression,
        /// The error of the decoder.
        source: io::Error,
    },
    /// The unpacked file is not a NAR.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// Unpacking needs more than the allowance; it must be retried with this one. Callers do that,
    /// so no client gets this error.
    #[error("unpacking the file needs more memory than allowed")]
    Exceeded(Allowance),
    /// The window is larger than the largest allowed one.
    #[error(
        "the window of the {0} data is larger than allowed (128 MiB; brotli: 16 MiB); compress the NAR \
         with a smaller window"
    )]
    Window(Compression),
    /// The unpacked size is out of proportion.
    #[error(
        "the first {packed} bytes of the file unpack to {unpacked} bytes: refused as a \
         decompression bomb"
    )]
    Bomb {
        /// Bytes read.
        packed: u64,
        /// Bytes unpacked from them.
        unpacked: u64,
    },
}

/// Unpacks `input` and checks that it is a NAR. The first `fill_buf` must return the magic number.
/// `length` is the length of the whole input, if it is known. If unpacking exceeds the allowance, it
/// fails with [`UnpackError::Exceeded`].
pub(crate) fn unpack(
    input: impl BufRead,
    length: Option<u64>,
    extension: NarExtension,
    allowance: Allowance,
) -> Result<Unpacked, UnpackError> {
    let packed = Cell::new(0);
    let count = |bytes: &[u8]| packed.set(packed.get() + bytes.len() as u64);
    let mut input = InspectReader::new(input, count);
    let beginning = input
        .fill_buf()
        .map_err(|source| UnpackError::Decode { compression: Compression::None, source })?;
    let compression = Compression::detect(extension, beginning).ok_or(UnpackError::Unknown)?;
    let failed = |source: io::Error| match more_memory(&source, allowance) {
        Some(more) => UnpackError::Exceeded(more),
        None if needs_memory(&source) => UnpackError::Window(compression),
        None => UnpackError::Decode { compression, source },
    };
    let mut checker = NarChecker::default();
    let mut nar_size = 0;

    if compression == Compression::None {
        loop {
            let bytes = input.fill_buf().map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            checker.push(bytes)?;
            let count = bytes.len();
            nar_size += count as u64;
            input.consume(count);
        }
        checker.finish()?;
        return Ok(Unpacked { compression, nar_hash: None, nar_size });
    }

    let mut decoder = match decoder(compression, input, allowance) {
        Ok(decoder) => decoder,
        Err(None) => return Err(UnpackError::NoDecoder(compression)),
        Err(Some(source)) => return Err(failed(source)),
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; UNPACK_BUFFER_SIZE];
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hasher.update(&buffer[..count]);
        checker.push(&buffer[..count])?;
        nar_size += count as u64;
        if nar_size > allowance.output_of(length.unwrap_or(packed.get())) {
            let bomb = UnpackError::Bomb { packed: packed.get(), unpacked: nar_size };
            return Err(allowance.with_more_output().map_or(bomb, UnpackError::Exceeded));
        }
    }
    checker.finish()?;
    let nar_hash = Some(Sha256Hash::new(hasher.finalize().into()));
    Ok(Unpacked { compression, nar_hash, nar_size })
}
