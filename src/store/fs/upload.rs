//! A streamed upload of an object that is too large for memory.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::commit::{Committer, NewObject};
use super::open_root::OpenRoot;
use super::reservation::{Reservations, UploadFile, lock};
use super::space::Space;
use super::staging::StagedFile;
use crate::store::{StoreError, Stored, Upload};

/// The number of bytes after which the kernel is told to write to the disk, so that the final sync
/// is short, and the sync of another object does not wait for all bytes of this one.
const WRITE_BEHIND: u64 = 8 * 1024 * 1024;

/// A streamed upload into a staged file.
pub(crate) struct FsUpload {
    root: Arc<OpenRoot>,
    committer: Arc<Committer>,
    reservations: Arc<Reservations>,
    space: Space,
    key: String,
    body: Arc<Mutex<UploadFile>>,
    staged: StagedFile,
    /// The number of bytes whose writing to the disk was started.
    sent: u64,
}

impl FsUpload {
    /// Starts an upload of `size` bytes, if the size is known.
    pub(super) fn start(
        root: Arc<OpenRoot>,
        committer: Arc<Committer>,
        reservations: &Arc<Reservations>,
        space: Space,
        key: String,
        size: Option<u64>,
    ) -> Result<Self, StoreError> {
        let size = size.unwrap_or_default();
        match space.check(&key, size) {
            Err(StoreError::Reserve { .. }) if reservations.release_slow() => {
                space.check(&key, size)?;
            }
            checked => checked?,
        }
        let (file, staged) =
            root.stage().map_err(|error| StoreError::of_upload("staging", &key, error))?;
        let body = reservations
            .reserve(file, size)
            .map_err(|error| StoreError::new("reserving space for", &key, error))?;
        if lock(&body).has_space() {
            // Concurrent uploads may have checked the same free space.
            space.check(&key, 0)?;
        }
        let reservations = Arc::clone(reservations);
        Ok(Self { root, committer, reservations, space, key, body, staged, sent: 0 })
    }
}

/// Writes all bytes. If the disk is full, releases the reservations of slow uploads and retries
/// once.
fn write(body: &mut UploadFile, mut bytes: &[u8], reservations: &Reservations) -> io::Result<()> {
    let mut may_release = true;
    while !bytes.is_empty() {
        let file = body.file.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                body.written += count as u64;
                bytes = &bytes[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let is_full = Errno::from_io_error(&error) == Some(Errno::NOSPC);
                if !(is_full && std::mem::take(&mut may_release) && reservations.release_slow()) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Starts to write a range to the disk, without waiting. There is no safe wrapper of a system call
/// for this. But `POSIX_FADV_DONTNEED` makes Linux start to write dirty pages (`mm/fadvise.c`), and
/// it keeps them while they are being written. The range is not durable before the commit.
fn start_writing(file: &File, offset: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    // The call is only advice, so errors are ignored.
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
}

impl Upload for FsUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let mut body = lock(&self.body);
        write(&mut body, bytes, &self.reservations)
            .map_err(|error| StoreError::new("writing", &self.key, error))?;
        if body.written - self.sent >= WRITE_BEHIND {
            if !body.has_space() {
                self.space.check(&self.key, WRITE_BEHIND)?;
            }
            if let Some(file) = &body.file {
                start_writing(file, self.sent, body.written - self.sent);
            }
            self.sent = body.written;
        }
        Ok(())
    }

    fn staged(&self) -> Result<Option<File>, StoreError> {
        let body = lock(&self.body);
        let file = body.file.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into());
        let file = file.and_then(File::try_clone);
        file.map(Some).map_err(|error| StoreError::new("reading", &self.key, error))
    }

    fn commit(self: Box<Self>) -> Result<Stored, StoreError> {
        let Self { root, committer, key, body, staged, .. } = *self;
        let failed = |error| StoreError::of_upload("publishing", &key, error);
        let (file, written) = {
            let mut body = lock(&body);
            (body.finish(), body.written)
        };
        let unsynced = match file {
            // A large file is synced here, so that other uploads in the batch do not wait for it.
            Some(file) if written >= WRITE_BEHIND => {
                file.sync_all().map_err(failed)?;
                None
            }
            file => file,
        };
        committer
            .commit(NewObject::Staged(root, unsynced, staged), key.clone())
            .blocking_recv()
            .map_err(|_| io::Error::other("the commit thread has ended"))
            .and_then(|done| done)
            .map_err(failed)
    }
}
