//! An upload that reports its progress to the readers of a fetched NAR.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use tracing::warn;

use super::partial_nar::PartialNar;
use crate::logging::with_causes;
use crate::nix::CachePath;
use crate::store::{Store, StoreError, Stored, Upload};

/// An upload into an unnamed temporary file. It is never committed.
pub(super) struct TemporaryUpload {
    key: String,
    file: File,
}

impl TemporaryUpload {
    /// Creates the temporary file for the object at `path`, of `size` bytes if the size is known.
    /// Blocks.
    pub(super) fn create(
        store: &Store,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<Self, StoreError> {
        Ok(Self { key: path.key(), file: store.temporary_file(path, size)? })
    }
}

impl Upload for TemporaryUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| StoreError::new("writing a temporary copy of", &self.key, error))
    }

    fn staged(&self) -> Result<Option<File>, StoreError> {
        let file = self.file.try_clone().map(Some);
        file.map_err(|error| StoreError::new("reading the temporary copy of", &self.key, error))
    }

    fn commit(self: Box<Self>) -> Result<Stored, StoreError> {
        let error = io::Error::from(io::ErrorKind::Unsupported);
        Err(StoreError::new("storing the temporary copy of", &self.key, error))
    }
}

/// An upload that reports its progress to the readers of the NAR.
///
/// Readers read from the staged file. A store without staged files gets a temporary copy for them.
/// If the copy cannot be written to its end, the readers read the rest from the store after the
/// commit.
pub(super) struct NotifyingUpload {
    inner: Box<dyn Upload>,
    copy: Option<TemporaryUpload>,
    partial: Arc<PartialNar>,
}

impl NotifyingUpload {
    pub(super) fn new(
        inner: Box<dyn Upload>,
        copy: Option<TemporaryUpload>,
        partial: Arc<PartialNar>,
    ) -> Self {
        Self { inner, copy, partial }
    }
}

impl Upload for NotifyingUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.write(bytes)?;
        let copied = self.copy.as_mut().map_or(Ok(()), |copy| copy.write(bytes));
        match copied {
            Ok(()) => self.partial.written(bytes.len() as u64),
            Err(error) => {
                warn_without_copy(&error);
                self.copy = None;
                self.partial.copy_ended();
            }
        }
        Ok(())
    }

    fn set_slow(&mut self, slow: bool) -> Result<(), StoreError> {
        self.inner.set_slow(slow)
    }

    fn staged(&self) -> Result<Option<File>, StoreError> {
        match &self.copy {
            Some(copy) => copy.staged(),
            None => self.inner.staged(),
        }
    }

    fn commit(self: Box<Self>) -> Result<Stored, StoreError> {
        self.inner.commit()
    }
}

/// Logs that readers of a NAR wait until it is stored.
pub(super) fn warn_without_copy(error: &StoreError) {
    warn!(error = %with_causes(error), "cannot write a temporary copy of a NAR; clients wait until it is stored");
}
