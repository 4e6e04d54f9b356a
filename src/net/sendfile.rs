//! Sends files without copying them through user space.
//!
//! hyper supports bodies of [`Bytes`] and vectored writes, but no files. So a file is passed to it
//! as one `Bytes` over a memory map of the file, which costs an address range and no page. When
//! hyper writes, [`super::io`] recognizes a slice of that map, and makes the kernel send the same
//! range of the file instead. The map is never read on this path, so there are no page faults, and
//! no signal if another process truncates the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::fd::AsFd;
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

use crate::http::MapFile;

/// The most bytes that one call sends: enough to fill a socket buffer; then other tasks run.
const CHUNK: usize = 1024 * 1024;

/// The distance in bytes between two probes of the page cache. The kernel reads ahead in steps of this
/// size (`read_ahead_kb`).
const PROBE: usize = 128 * 1024;

/// The memory-mapped files of one connection, found by address.
#[derive(Debug, Default)]
pub struct MappedFiles(Mutex<Vec<MappedFile>>);

/// A file whose map hyper holds as bytes.
#[derive(Debug, Clone)]
struct MappedFile {
    addresses: Range<usize>,
    file: Arc<File>,
}

/// A range of a file that is to be sent.
#[derive(Debug, Clone)]
pub struct FileSlice {
    file: Arc<File>,
    offset: u64,
    len: usize,
}

/// The owner of the bytes of a map. It is removed from [`MappedFiles`] when hyper drops the last of
/// these bytes.
struct Mapping {
    map: Mmap,
    files: Arc<MappedFiles>,
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = self.map.as_ptr().addr();
        self.files.lock().retain(|file| file.addresses.start != start);
    }
}

impl MappedFiles {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<MappedFile>> {
        // A panic cannot leave the list half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the range of a file that `bytes` are mapped to, at most [`CHUNK`] bytes, or `None` if
    /// they are not in the map of a file.
    pub fn find(&self, bytes: &[u8]) -> Option<FileSlice> {
        let address = bytes.as_ptr().addr();
        let files = self.lock();
        let mapped = files.iter().find(|file| file.addresses.contains(&address))?;
        Some(FileSlice {
            file: Arc::clone(&mapped.file),
            offset: (address - mapped.addresses.start) as u64,
            len: bytes.len().min(CHUNK),
        })
    }

    /// Whether no file is mapped, as during most writes.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

impl MapFile for Arc<MappedFiles> {
    fn map(&self, file: File, size: u64) -> Result<Bytes, File> {
        let Ok(len) = usize::try_from(size) else {
            return Err(file);
        };
        // SAFETY: A map must not be read while its file is changed or truncated. The bytes of this map
        // are never read: hyper's HTTP/1 encoder for a body of known length passes them to
        // `poll_write_vectored` unread, because `ServerIo` supports vectored writes; there `find`
        // recognizes their addresses, and the file is sent instead. Even if they were read, they would
        // not change: the store never changes a published file in place, and only replaces it by
        // renaming.
        #[expect(unsafe_code, reason = "the only place; see above")]
        let map = unsafe { MmapOptions::new().len(len).map(&file) };
        let Ok(map) = map else {
            return Err(file);
        };
        let start = map.as_ptr().addr();
        let addresses = start..start + map.len();
        self.lock().push(MappedFile { addresses, file: Arc::new(file) });
        Ok(Bytes::from_owner(Mapping { map, files: Arc::clone(self) }))
    }
}

impl FileSlice {
    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Shortens the range to at most `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Whether the range is in the page cache, judged by probes that do not block. Also true if the
    /// file cannot be read: sending it then reports the error.
    pub fn is_cached(&self) -> bool {
        let last = self.len.saturating_sub(1);
        let probes = (0..self.len).step_by(PROBE).chain([last]);
        probes.into_iter().all(|at| {
            let mut byte = [0];
            let mut slices = [IoSliceMut::new(&mut byte)];
            let offset = self.offset + at as u64;
            let read = rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT);
            // A file system without such probes is treated as if nothing were cached.
            !read.is_err_and(|error| error == Errno::AGAIN || is_unsupported(error))
        })
    }

    /// Reads the range into the page cache. Blocks.
    pub fn read_ahead(&self) {
        use std::os::unix::fs::FileExt;
        let mut scratch = vec![0; PROBE];
        let mut at = 0;
        while at < self.len {
            // Sending the range fails with the same error, and reports it.
            match self.file.read_at(&mut scratch, self.offset + at as u64) {
                Ok(0) | Err(_) => return,
                Ok(count) => at += count,
            }
        }
    }

    /// Sends the beginning of the range to `socket`, as much as its buffer can hold, and returns the
    /// number of bytes. Fails with `UnexpectedEof` if the file has become too short.
    pub fn send(&self, socket: impl AsFd) -> io::Result<usize> {
        let mut offset = self.offset;
        match rustix::fs::sendfile(&socket, &self.file, Some(&mut offset), self.len) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(count),
            Err(error) if is_unsupported(error) => self.copy(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends up to [`PROBE`] bytes through a buffer, where `sendfile` is not supported.
    fn copy(&self, socket: impl AsFd) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; self.len.min(PROBE)];
        match self.file.read_at(&mut bytes, self.offset)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(rustix::io::write(socket, &bytes[..count])?),
        }
    }
}

/// Whether the error means that the kernel, a sandbox or the file system does not support the system
/// call.
fn is_unsupported(error: Errno) -> bool {
    [Errno::NOSYS, Errno::INVAL, Errno::PERM, Errno::OPNOTSUPP].contains(&error)
}
