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

use crate::http::LendFile;

/// How much is sent at a time: enough for a socket buffer, and then others have their turn.
const CHUNK: usize = 1024 * 1024;

/// How far apart the page cache is asked whether it has a chunk: the kernel reads ahead in steps of
/// this size (`read_ahead_kb`).
const PROBE: usize = 128 * 1024;

/// The files that one connection has lent out.
#[derive(Debug, Default)]
pub struct Lent(Mutex<Vec<Loan>>);

/// A file that hyper holds as bytes.
#[derive(Debug, Clone)]
struct Loan {
    addresses: Range<usize>,
    file: Arc<File>,
}

/// A piece of a file.
#[derive(Debug, Clone)]
pub struct Piece {
    file: Arc<File>,
    offset: u64,
    len: usize,
}

/// The bytes of a map; when hyper drops the last of them, the loan ends.
struct LentMap {
    map: Mmap,
    lent: Arc<Lent>,
}

impl AsRef<[u8]> for LentMap {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for LentMap {
    fn drop(&mut self) {
        let start = self.map.as_ptr().addr();
        self.lent.loans().retain(|loan| loan.addresses.start != start);
    }
}

impl Lent {
    fn loans(&self) -> std::sync::MutexGuard<'_, Vec<Loan>> {
        // A list of loans is whole after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The piece of a file that `bytes` stand for, if they are lent.
    pub fn find(&self, bytes: &[u8]) -> Option<Piece> {
        let address = bytes.as_ptr().addr();
        let loans = self.loans();
        let loan = loans.iter().find(|loan| loan.addresses.contains(&address))?;
        Some(Piece {
            file: Arc::clone(&loan.file),
            offset: (address - loan.addresses.start) as u64,
            len: bytes.len().min(CHUNK),
        })
    }

    /// Whether any file is lent. Most writes of most connections end here.
    pub fn is_empty(&self) -> bool {
        self.loans().is_empty()
    }
}

impl LendFile for Arc<Lent> {
    fn lend(&self, file: File, size: u64) -> Result<Bytes, File> {
        let Ok(len) = usize::try_from(size) else {
            return Err(file);
        };
        // SAFETY: A map must not be read while the file under it is changed or truncated. Bytes of
        // this one are never read: they are only handed to hyper, whose HTTP/1 encoder for a body
        // of known length passes them on to `poll_write_vectored` without looking at them, because
        // our stream says that it writes vectored; and there `find` recognizes them by address and
        // sends the file. If they were read after all, they would still be the file's: what the
        // store publishes is never changed in place, only replaced by renaming.
        #[expect(unsafe_code, reason = "the one place, see above")]
        let map = unsafe { MmapOptions::new().len(len).map(&file) };
        let Ok(map) = map else {
            return Err(file);
        };
        let start = map.as_ptr().addr();
        let addresses = start..start + map.len();
        self.loans().push(Loan { addresses, file: Arc::new(file) });
        Ok(Bytes::from_owner(LentMap { map, lent: Arc::clone(self) }))
    }
}

impl Piece {
    /// How many bytes it is.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes it no longer than `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Whether the page cache has it, as far as one can ask without waiting.
    pub fn is_cached(&self) -> bool {
        let last = self.len.saturating_sub(1);
        let probes = (0..self.len).step_by(PROBE).chain([last]);
        probes.into_iter().all(|at| {
            let mut byte = [0];
            let mut slices = [IoSliceMut::new(&mut byte)];
            let offset = self.offset + at as u64;
            let read = rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT);
            // Where the file system cannot be asked, it is read ahead, as if it were not there. What
            // else goes wrong goes wrong again when it is sent.
            !read.is_err_and(|error| error == Errno::AGAIN || is_unsupported(error))
        })
    }

    /// Reads it into the page cache. Blocks.
    pub fn read_ahead(&self) {
        use std::os::unix::fs::FileExt;
        let mut scratch = vec![0; PROBE];
        let mut at = 0;
        while at < self.len {
            // Whatever goes wrong here, sending it goes wrong in the same way and is told.
            match self.file.read_at(&mut scratch, self.offset + at as u64) {
                Ok(0) | Err(_) => return,
                Ok(count) => at += count,
            }
        }
    }

    /// Sends it to `socket`, as much as that takes.
    pub fn send(&self, socket: impl AsFd) -> io::Result<usize> {
        let mut offset = self.offset;
        match rustix::fs::sendfile(&socket, &self.file, Some(&mut offset), self.len) {
            // The file has become shorter than the length that was promised.
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(count),
            Err(error) if is_unsupported(error) => self.copy(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a part of it by way of the program.
    fn copy(&self, socket: impl AsFd) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; self.len.min(PROBE)];
        match self.file.read_at(&mut bytes, self.offset)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(rustix::io::write(socket, &bytes[..count])?),
        }
    }
}

/// Whether an error says that the kernel, a sandbox or the file system does not have a system call
/// that is only for speed.
fn is_unsupported(error: Errno) -> bool {
    [Errno::NOSYS, Errno::INVAL, Errno::PERM, Errno::OPNOTSUPP].contains(&error)
}
