//! Reading without ever making an async worker wait for a disk.
//!
//! Linux can be asked not to wait: `openat2` with `RESOLVE_CACHED` opens a name, or says that it is
//! absent, only from the dentry cache, and `preadv2` with `RWF_NOWAIT` reads only what is in the
//! page cache. `EAGAIN` from either sends the work to the blocking pool, where the same steps wait.
//! So a hot object costs no thread hop, and a cold one no stalled worker.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

use super::super::{Content, Metadata, Object, StoreError};
use super::absent::Absent;
use crate::nix::CachePath;
use crate::nix::narinfo;

/// Objects up to this size are read at once; a larger one is left in its file, to be sent from
/// there. One page-cache read of this size costs about as much as setting up a `sendfile`.
const SMALL: u64 = 32 * 1024;

/// Reads objects below a directory.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    root: Arc<OwnedFd>,
    absent: Arc<Absent>,
}

/// Whether a step may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Never,
    AsLongAsItTakes,
}

impl Reader {
    pub(super) fn new(root: Arc<OwnedFd>) -> Self {
        Self { root, absent: Arc::new(Absent::new()) }
    }

    /// What the object at `key` is, and, if it is `wanted` and no larger than a narinfo, its
    /// content. Waits for the disk, and leaves no trace of having read.
    pub(super) fn inspect(
        &self,
        key: &str,
        wanted: bool,
    ) -> Result<Option<(Metadata, Option<Bytes>)>, StoreError> {
        let wait = Wait::AsLongAsItTakes;
        let inspected = if wanted {
            open(&self.root, key, wait).and_then(|opened| {
                let Some((file, stat)) = opened else {
                    return Ok(None);
                };
                let metadata = metadata(&stat);
                // No memory for what is none of the texts that are wanted.
                let content = (metadata.size <= narinfo::MAX_SIZE)
                    .then(|| read_whole(&file, metadata.size as usize, wait))
                    .transpose()?;
                Ok(Some((metadata, content)))
            })
        } else {
            stat(&self.root, key).map(|stat| stat.map(|stat| (metadata(&stat), None)))
        };
        inspected.map_err(|error| StoreError::new("reading", key, error))
    }

    /// Opens the file at `key`. Waits for the disk.
    pub(super) fn open_file(&self, key: &str) -> io::Result<Option<Object>> {
        let opened = open(&self.root, key, Wait::AsLongAsItTakes)?;
        Ok(opened.map(|(file, stat)| Object {
            metadata: metadata(&stat),
            content: Content::File(File::from(file)),
        }))
    }

    pub(super) async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, StoreError> {
        self.now_or_in_the_pool(path, |root, key, wait| {
            Ok(open(root, key, wait)?.map(|(_, stat)| metadata(&stat)))
        })
        .await
    }

    pub(super) async fn get(&self, path: &CachePath) -> Result<Option<Object>, StoreError> {
        // A narinfo is always read at once.
        let limit = match path {
            CachePath::NarInfo(_) => narinfo::MAX_SIZE,
            _ => SMALL,
        };
        self.now_or_in_the_pool(path, move |root, key, wait| {
            let Some((file, stat)) = open(root, key, wait)? else {
                return Ok(None);
            };
            let metadata = metadata(&stat);
            let content = if metadata.size <= limit {
                Content::Bytes(read_whole(&file, metadata.size as usize, wait)?)
            } else {
                Content::File(File::from(file))
            };
            Ok(Some(Object { metadata, content }))
        })
        .await
    }

    async fn now_or_in_the_pool<T: Send + 'static>(
        &self,
        path: &CachePath,
        step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno> + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        let stamp = Absent::stamp(&self.root, path);
        if self.absent.knows(path, stamp) {
            return Ok(None);
        }
        let key = path.key();
        match step(&self.root, &key, Wait::Never) {
            Ok(found) => {
                if found.is_none() {
                    self.absent.remember(path, stamp);
                }
                Ok(found)
            }
            Err(would_wait) if is_reason_to_wait(would_wait) => {
                let root = Arc::clone(&self.root);
                tokio::task::spawn_blocking(move || {
                    step(&root, &key, Wait::AsLongAsItTakes)
                        .map_err(|error| StoreError::new("reading", &key, error))
                })
                .await
                .expect("reading a file does not panic, and the pool outlives its tasks")
            }
            Err(error) => Err(StoreError::new("reading", &key, error)),
        }
    }
}

/// `EAGAIN` where it would wait; the others where the kernel, a sandbox or the file system cannot
/// be asked that way.
fn is_reason_to_wait(error: Errno) -> bool {
    [Errno::AGAIN, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP, Errno::INVAL].contains(&error)
}

/// Opens the regular file at `key`; none if there is none.
fn open(root: &OwnedFd, key: &str, wait: Wait) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let open = |flags| match wait {
        Wait::Never => rustix::fs::openat2(root, key, flags, Mode::empty(), ResolveFlags::CACHED),
        Wait::AsLongAsItTakes => rustix::fs::openat(root, key, flags, Mode::empty()),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    // Without a trace in the access time, where uses are recorded. The system allows that to the
    // owner of a file only.
    let opened = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&file)?;
    Ok(is_regular(&stat).then_some((file, stat)))
}

/// What is known about the regular file at `key`; none if there is none.
fn stat(root: &OwnedFd, key: &str) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(root, key, AtFlags::empty()) {
        Ok(stat) => Ok(is_regular(&stat).then_some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The time of the last use: reading without our trace, and writing, are uses too.
pub(super) fn last_use(stat: &Stat) -> SystemTime {
    time(stat.st_atime, stat.st_atime_nsec).max(time(stat.st_mtime, stat.st_mtime_nsec))
}

fn time(seconds: i64, nanos: impl TryInto<u32>) -> SystemTime {
    let since = Duration::new(seconds.max(0) as u64, nanos.try_into().unwrap_or_default());
    SystemTime::UNIX_EPOCH + since
}

pub(super) fn metadata(stat: &Stat) -> Metadata {
    let (seconds, nanos) = (stat.st_mtime, stat.st_mtime_nsec);
    Metadata {
        size: stat.st_size as u64,
        modified: time(seconds, nanos),
        used: last_use(stat),
        // Replacing goes by rename, so a new object has a new inode even within one tick of the
        // file system's clock.
        etag: format!("\"{:x}-{:x}-{seconds:x}.{nanos:x}\"", stat.st_ino, stat.st_size).into(),
    }
}

fn read_whole(file: impl AsFd, size: usize, wait: Wait) -> Result<Bytes, Errno> {
    let flags = match wait {
        Wait::Never => ReadWriteFlags::NOWAIT,
        Wait::AsLongAsItTakes => ReadWriteFlags::empty(),
    };
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        let mut rest = [IoSliceMut::new(&mut bytes[filled..])];
        match rustix::io::preadv2(&file, &mut rest, filled as u64, flags) {
            // Shorter than it was a moment ago: somebody truncated it in place.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Bytes::from(bytes))
}

/// Reads up to `len` bytes of a file from `offset`, on the blocking pool.
pub async fn read_chunk(file: Arc<File>, offset: u64, len: usize) -> io::Result<Bytes> {
    tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Bytes::from(bytes))
    })
    .await
    .expect("reading a file does not panic, and the pool outlives its tasks")
}
