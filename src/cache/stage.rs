//! Stages an object: hashes, measures and writes its bytes chunk by chunk.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::PutError;
use super::unpack::{UnpackError, Unpacked};
use crate::nix::nar::NarChecker;
use crate::nix::{Compression, Sha256Hash};
use crate::store::Upload;

/// The staged part of an upload. Its methods block on the disk.
pub(super) struct Stage {
    upload: Box<dyn Upload>,
    hasher: Sha256,
    length: u64,
    limit: u64,
    /// Where this is a NAR that is not compressed.
    checker: Option<Result<NarChecker, UnpackError>>,
    /// How long all this took.
    busy: Duration,
}

/// The size and hash of a staged object.
pub(super) struct Staged {
    /// SHA-256 of the body.
    pub hash: Sha256Hash,
    /// Its length in bytes.
    pub length: u64,
    /// The result of checking it as an uncompressed NAR, or `None` if it was not checked.
    pub checked: Option<Result<Unpacked, UnpackError>>,
    /// How long hashing and writing took.
    pub busy: Duration,
    pub upload: Box<dyn Upload>,
}

impl Stage {
    /// An object that goes to `upload` and may be `limit` bytes.
    pub(super) fn new(upload: Box<dyn Upload>, limit: u64) -> Self {
        let hasher = Sha256::new();
        Self { upload, hasher, length: 0, limit, checker: None, busy: Duration::ZERO }
    }

    /// What comes is a NAR that is not compressed. To be called before anything has come.
    pub(super) fn check_nar(&mut self) {
        self.checker = Some(Ok(NarChecker::default()));
    }

    /// Takes the next pieces.
    pub(super) fn push(&mut self, chunks: &[Bytes]) -> Result<(), PutError> {
        let begun = Instant::now();
        let pushed = chunks.iter().try_for_each(|chunk| self.push_chunk(chunk));
        self.busy += begun.elapsed();
        pushed
    }

    fn push_chunk(&mut self, chunk: &[u8]) -> Result<(), PutError> {
        self.length += chunk.len() as u64;
        if self.length > self.limit {
            return Err(PutError::TooLarge { limit: self.limit });
        }
        self.hasher.update(chunk);
        self.upload.write(chunk)?;
        // What is wrong with the NAR is not worth breaking off for: that the body was damaged on its
        // way, which is known at its end, says more.
        if let Some(Ok(checker)) = &mut self.checker
            && let Err(error) = checker.push(chunk)
        {
            self.checker = Some(Err(error.into()));
        }
        Ok(())
    }

    /// Marks the upload as slow or not.
    pub(super) fn set_slow(&mut self, slow: bool) -> Result<(), PutError> {
        Ok(self.upload.set_slow(slow)?)
    }

    /// With everything around it, it took so long until now.
    pub(super) fn set_busy(&mut self, time: Duration) {
        self.busy = time;
    }

    /// That was all.
    pub(super) fn finish(self) -> Staged {
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
