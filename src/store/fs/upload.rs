//! An object too large for memory, on its way into the directory.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::commit::{Committer, Object};
use super::space::Space;
use super::staging::Staging;
use crate::store::{StoreError, Stored, Upload};

/// Written bytes are sent to the disk in steps of this size, so that the sync at the end has
/// little left to do, and no sync of another object has to wait for all of this one.
const WRITE_BEHIND: u64 = 8 * 1024 * 1024;

/// A staged file that has no name in the cache yet.
pub(super) struct FsUpload {
    staging: Arc<Staging>,
    committer: Arc<Committer>,
    space: Space,
    key: String,
    file: File,
    /// Its name in the staging folder, until the committer has it.
    staged: Option<String>,
    /// How long it will be, if that is known.
    size: Option<u64>,
    written: u64,
    /// How much of it has been sent to the disk.
    sent: u64,
}

impl FsUpload {
    pub(super) fn begin(
        staging: &Arc<Staging>,
        committer: Arc<Committer>,
        space: Space,
        key: String,
        size: Option<u64>,
    ) -> Result<Self, StoreError> {
        space.check(&key, size.unwrap_or_default())?;
        let staged = staging.create();
        let (file, name) = staged.map_err(|error| StoreError::new("staging", &key, error))?;
        let upload = Self {
            staging: Arc::clone(staging),
            committer,
            space,
            key,
            file: File::from(file),
            staged: Some(name),
            size,
            written: 0,
            sent: 0,
        };
        reserve(&upload.file, size.unwrap_or_default())
            .map_err(|error| StoreError::new("reserving space for", &upload.key, error))?;
        Ok(upload)
    }

    /// Makes the kernel begin to write what is behind, and does not wait for it.
    fn write_behind(&mut self) -> Result<(), StoreError> {
        if self.size.is_none() {
            self.space.check(&self.key, WRITE_BEHIND)?;
        }
        start_writing(&self.file, self.sent, self.written - self.sent);
        self.sent = self.written;
        Ok(())
    }
}

/// Takes the space now, so that a full disk is known before the body is sent. A file system that
/// cannot is asked again by the writes.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        Err(error) if [Errno::OPNOTSUPP, Errno::NOSYS].contains(&error) => Ok(()),
        reserved => Ok(reserved?),
    }
}

/// Makes the kernel start to write the range, and does not wait for it. Linux has no safe way to
/// say just that; but told that dirty pages are not needed, it begins with writing them
/// (`mm/fadvise.c`), and keeps them as long as they are being written. Durability is not in this:
/// it is the committer's.
fn start_writing(file: &File, offset: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    // Only advice.
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
}

impl Upload for FsUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| StoreError::new("writing", &self.key, error))?;
        self.written += bytes.len() as u64;
        if self.written - self.sent >= WRITE_BEHIND {
            self.write_behind()?;
        }
        Ok(())
    }

    fn reader(&mut self) -> Result<File, StoreError> {
        self.file.try_clone().map_err(|error| StoreError::new("reading", &self.key, error))
    }

    fn commit(mut self: Box<Self>) -> Result<Stored, StoreError> {
        let key = self.key.clone();
        let failed = |error| StoreError::new("publishing", &key, error);
        // A large file is synced here: the committer's other customers need not wait for it.
        let unsynced = if self.written < WRITE_BEHIND {
            Some(self.file.try_clone().map_err(failed)?)
        } else {
            self.file.sync_all().map_err(failed)?;
            None
        };
        let name = self.staged.take().expect("an upload is committed once");
        let object = match unsynced {
            Some(file) => Object::Staged(file, name),
            None => Object::Synced(name),
        };
        self.committer
            .commit(object, self.key.clone())
            .blocking_recv()
            .map_err(|_| io::Error::other("the committing thread is gone"))
            .and_then(|done| done)
            .map_err(failed)
    }
}

impl Drop for FsUpload {
    fn drop(&mut self) {
        if let Some(name) = self.staged.take() {
            // Nobody is left to tell; the sweep at the next start removes what stays.
            let _ = self.staging.remove(&name);
        }
    }
}
