//! Reads without making an async worker wait for a disk.
//!
//! Linux offers operations that do not wait: `openat2` with `RESOLVE_CACHED` opens a name, or
//! reports its absence, only from the dentry cache, and `preadv2` with `RWF_NOWAIT` reads only from
//! the page cache. If either returns `EAGAIN`, the blocking pool takes the same steps, and waits.
//! So a hot object costs no thread hop, and a cold object does not stall a worker. If the kernel or
//! a sandbox supports neither operation, the pool does all the work, with older system calls.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};
use rustix::process::Uid;

use super::negative_cache::NegativeCache;
use super::open_root::OpenRoot;
use super::root::Root;
use crate::nix::{CachePath, narinfo};
use crate::store::{Content, Metadata, Object, StoreError};

/// Objects up to this size are read at once; a larger one is left in its file, to be sent from
/// there. One page-cache read of this size costs about as much as setting up a `sendfile`.
const SMALL: u64 = 32 * 1024;

/// Reads objects below a directory.
#[derive(Debug, Clone)]
pub(super) struct ObjectReader {
    root: Arc<Root>,
}

/// The kind of a listed name.
pub(super) enum Inspection {
    /// An object, with its content if that was wanted.
    Object {
        metadata: Metadata,
        content: Option<Bytes>,
        /// The user whose file it is.
        owner: Uid,
    },
    /// A directory, or something else that is no file.
    NoFile(Metadata),
    /// Nothing.
    Absent,
}

/// The result of a lookup without waiting.
enum Tried<T> {
    Found(T),
    /// It is not in the directory with this generation.
    Absent(u64),
    /// Finding out may take a while.
    Unknown(Arc<OpenRoot>),
}

/// Whether a step may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Never,
    AsLongAsItTakes,
}

impl ObjectReader {
    pub(super) fn new(root: Arc<Root>) -> Self {
        Self { root }
    }

    /// The object in the file at `key`, whatever its name.
    pub(super) async fn get_foreign(&self, key: &str) -> Result<Option<Object>, StoreError> {
        loop {
            let root = Arc::clone(&self.root.current());
            let generation = root.generation;
            let found = in_the_pool(root, key.to_owned(), |root, key, wait| {
                Ok(open(root, key, wait)?.map(|(file, stat)| Object {
                    metadata: metadata(&stat),
                    content: Content::File(File::from(file)),
                }))
            });
            match found.await? {
                None if self.root.confirm().await? == generation => return Ok(None),
                None => {}
                found => return Ok(found),
            }
        }
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
        step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno> + Clone + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let generation = match self.try_now(path, &step)? {
                Tried::Found(found) => {
                    self.root.keep_watch();
                    return Ok(Some(found));
                }
                Tried::Absent(generation) => generation,
                Tried::Unknown(root) => {
                    let generation = root.generation;
                    match in_the_pool(root, path.key(), step.clone()).await? {
                        None => generation,
                        found => {
                            self.root.keep_watch();
                            return Ok(found);
                        }
                    }
                }
            };
            // It may be in a new directory, where it must be looked up.
            if self.root.confirm().await? == generation {
                return Ok(None);
            }
        }
    }

    fn try_now<T>(
        &self,
        path: &CachePath,
        step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno>,
    ) -> Result<Tried<T>, StoreError> {
        let root = self.root.current();
        let seen = NegativeCache::directory_state(root.fd(), path);
        if seen.is_removed && root.counts_links {
            self.root.suspect();
        }
        if root.negative_cache.contains(path, seen.stamp) {
            return Ok(Tried::Absent(root.generation));
        }
        let key = path.key();
        match step(root.fd(), &key, Wait::Never) {
            Ok(Some(_)) if root.unsynced.in_doubt(&key).is_some() => {
                Ok(Tried::Unknown(Arc::clone(&root)))
            }
            Ok(Some(found)) => Ok(Tried::Found(found)),
            Ok(None) => {
                root.negative_cache.insert(path, seen.stamp);
                Ok(Tried::Absent(root.generation))
            }
            Err(would_wait) if is_reason_to_wait(would_wait) => {
                Ok(Tried::Unknown(Arc::clone(&root)))
            }
            Err(error) => Err(StoreError::new("reading", &key, error)),
        }
    }
}

/// Takes a step where it may wait for the disk.
async fn in_the_pool<T: Send + 'static>(
    root: Arc<OpenRoot>,
    key: String,
    step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno> + Send + 'static,
) -> Result<Option<T>, StoreError> {
    tokio::task::spawn_blocking(move || {
        let found = step(root.fd(), &key, Wait::AsLongAsItTakes);
        let found = found.map_err(|error| StoreError::new("reading", &key, error))?;
        if found.is_some() {
            root.settle(&key).map_err(|error| StoreError::new("syncing", &key, error))?;
        }
        Ok(found)
    })
    .await
    .expect("reading a file does not panic, and the pool outlives its tasks")
}

/// What the object at `key` is, and, if it is `wanted` and no larger than a narinfo, its content.
/// Waits for the disk, and leaves no trace of having read.
pub(super) fn inspect(root: &OpenRoot, key: &str, wanted: bool) -> Result<Inspection, StoreError> {
    let wait = Wait::AsLongAsItTakes;
    let inspect = || {
        let (file, stat) = if wanted {
            match open_any(root.fd(), key, wait)? {
                Some((file, stat)) => (Some(file), stat),
                None => return Ok(Inspection::Absent),
            }
        } else {
            match rustix::fs::statat(root.fd(), key, AtFlags::empty()) {
                Ok(stat) => (None, stat),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Inspection::Absent),
                Err(error) => return Err(error),
            }
        };
        if !is_regular(&stat) {
            return Ok(Inspection::NoFile(metadata(&stat)));
        }
        let (metadata, owner) = (metadata(&stat), Uid::from_raw(stat.st_uid));
        // No memory for a file that is not one of the small files that are wanted.
        let content = file
            .filter(|_| metadata.size <= narinfo::MAX_SIZE)
            .map(|file| read_whole(&file, metadata.size as usize, wait))
            .transpose()?;
        Ok(Inspection::Object { metadata, content, owner })
    };
    inspect().map_err(|error| StoreError::new("reading", key, error))
}

/// `EAGAIN` if the call would block; the others if the kernel, a sandbox or the file system does
/// not support it.
fn is_reason_to_wait(error: Errno) -> bool {
    [Errno::AGAIN, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP, Errno::INVAL].contains(&error)
}

/// Opens the regular file at `key`, or returns `None` if there is none.
fn open(root: &OwnedFd, key: &str, wait: Wait) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    Ok(open_any(root, key, wait)?.filter(|(_, stat)| is_regular(stat)))
}

/// Opens whatever is at `key`.
fn open_any(root: &OwnedFd, key: &str, wait: Wait) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let open = |flags| match wait {
        Wait::Never => rustix::fs::openat2(root, key, flags, Mode::empty(), ResolveFlags::CACHED),
        Wait::AsLongAsItTakes => rustix::fs::openat(root, key, flags, Mode::empty()),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    // Without a trace in the access time, where uses are recorded. The system allows that to the
    // owner of a file only, and not every file system knows the flag.
    let opened = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => open(flags),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&file)?;
    Ok(Some((file, stat)))
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
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        let (rest, offset) = (&mut bytes[filled..], filled as u64);
        let read = match wait {
            Wait::Never => {
                let mut rest = [IoSliceMut::new(rest)];
                rustix::io::preadv2(&file, &mut rest, offset, ReadWriteFlags::NOWAIT)
            }
            Wait::AsLongAsItTakes => rustix::io::pread(&file, rest, offset),
        };
        match read {
            // The file is shorter than a moment ago: another process truncated it in place.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Bytes::from(bytes))
}
