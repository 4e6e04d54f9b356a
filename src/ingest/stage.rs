//! Stages an object: hashes, measures and writes its bytes chunk by chunk.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::error::PutError;
use crate::nix::nar::NarChecker;
use crate::nix::{Compression, Sha256Hash};
use crate::store::Upload;
use crate::unpack::{UnpackError, Unpacked};

/// The staged part of an upload. Its methods block on the disk.
pub(crate) struct Stage {
    upload: Box<dyn Upload>,
    hasher: Sha256,
    length: u64,
    limit: u64,
    /// The checker of an uncompressed NAR.
    checker: Option<Result<NarChecker, UnpackError>>,
    /// The time spent on hashing and writing.
    busy: Duration,
}

/// The size and hash of a staged object.
pub(crate) struct Staged {
    /// SHA-256 of the body.
    pub hash: Sha256Hash,
    /// Its length in bytes.
    pub length: u64,
    /// The result of checking it as an uncompressed NAR, or `None` if it was not checked.
    pub checked: Option<Result<Unpacked, UnpackError>>,
    /// The time spent on hashing and writing.
    pub busy: Duration,
    pub upload: Box<dyn Upload>,
}

impl Stage {
    /// Stages an object of at most `limit` bytes in `upload`.
    pub(crate) fn new(upload: Box<dyn Upload>, limit: u64) -> Self {
        let hasher = Sha256::new();
        Self { upload, hasher, length: 0, limit, checker: None, busy: Duration::ZERO }
    }

    /// Checks the body as an uncompressed NAR. Must be called before the first byte.
    pub(crate) fn check_nar(&mut self) {
        self.checker = Some(Ok(NarChecker::default()));
    }

    /// Stages the next chunks.
    pub(crate) fn push(&mut self, chunks: &[Bytes]) -> Result<(), PutError> {
        let started = Instant::now();
        let pushed = chunks.iter().try_for_each(|chunk| self.push_chunk(chunk));
        self.busy += started.elapsed();
        pushed
    }

    fn push_chunk(&mut self, chunk: &[u8]) -> Result<(), PutError> {
        self.length += chunk.len() as u64;
        if self.length > self.limit {
            return Err(PutError::TooLarge { limit: self.limit });
        }
        self.hasher.update(chunk);
        self.upload.write(chunk)?;
        // An invalid NAR does not end the upload: if the body was damaged in transit, the wrong hash at
        // its end explains more.
        if let Some(Ok(checker)) = &mut self.checker
            && let Err(error) = checker.push(chunk)
        {
            self.checker = Some(Err(error.into()));
        }
        Ok(())
    }

    /// Marks the upload as slow or not.
    pub(crate) fn set_slow(&mut self, slow: bool) -> Result<(), PutError> {
        Ok(self.upload.set_slow(slow)?)
    }

    /// Sets the time spent until now, when the caller has measured it.
    pub(crate) fn set_busy(&mut self, time: Duration) {
        self.busy = time;
    }

    /// Ends the body.
    pub(crate) fn finish(self) -> Staged {
        let checked = self.checker.map(|checker| {
            checker?.finish()?;
            let compression = Compression::None;
            Ok(Unpacked { compression, nar_hash: None, nar_size: self.length })
        });
        Staged {
            hash: Sha256Hash::new(self.hasher.finalize().into()),
            length: self.length,
            checked,
            busy: self.busy,
            upload: self.upload,
        }
    }
}
