//! Reads objects without blocking an async worker on the disk.
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

/// Objects up to this size are read into memory. Larger objects are returned as files, so that the
/// kernel can send them. One page-cache read of this size costs about as much as setting up a
/// `sendfile`.
const READ_WHOLE_LIMIT: u64 = 32 * 1024;

/// Reads objects below a directory.
#[derive(Debug, Clone)]
pub(super) struct ObjectReader {
    root: Arc<Root>,
}

/// The kind of a listed name.
pub(super) enum Inspection {
    /// An object, with its content if it was wanted.
    Object {
        metadata: Metadata,
        content: Option<Bytes>,
        /// The owner of the file.
        owner: Uid,
    },
    /// A directory or another special file.
    NoFile(Metadata),
    Absent,
}

/// The result of a lookup that does not block.
enum NowResult<T> {
    Found(T),
    /// The object is absent from the directory with this generation.
    Absent(u64),
    /// The lookup would block.
    Unknown(Arc<OpenRoot>),
}

/// Whether a read may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Never,
    UntilDone,
}

impl ObjectReader {
    pub(super) fn new(root: Arc<Root>) -> Self {
        Self { root }
    }

    /// Returns the object in the file at `key`, which can have any name.
    pub(super) async fn get_foreign(&self, key: &str) -> Result<Option<Object>, StoreError> {
        loop {
            let root = Arc::clone(&self.root.current());
            let generation = root.generation;
            let found = read_on_blocking_pool(root, key.to_owned(), |root, key, wait| {
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
        self.now_or_on_blocking_pool(path, |root, key, wait| {
            Ok(open(root, key, wait)?.map(|(_, stat)| metadata(&stat)))
        })
        .await
    }

    pub(super) async fn get(&self, path: &CachePath) -> Result<Option<Object>, StoreError> {
        // A narinfo is always read into memory.
        let limit = match path {
            CachePath::NarInfo(_) => narinfo::MAX_SIZE,
            _ => READ_WHOLE_LIMIT,
        };
        self.now_or_on_blocking_pool(path, move |root, key, wait| {
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

    async fn now_or_on_blocking_pool<T: Send + 'static>(
        &self,
        path: &CachePath,
        step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno> + Clone + Send + 'static,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let generation = match self.try_now(path, &step)? {
                NowResult::Found(found) => {
                    self.root.check_in_background();
                    return Ok(Some(found));
                }
                NowResult::Absent(generation) => generation,
                NowResult::Unknown(root) => {
                    let generation = root.generation;
                    match read_on_blocking_pool(root, path.key(), step.clone()).await? {
                        None => generation,
                        found => {
                            self.root.check_in_background();
                            return Ok(found);
                        }
                    }
                }
            };
            // If the directory was replaced, the object is looked up in the new one.
            if self.root.confirm().await? == generation {
                return Ok(None);
            }
        }
    }

    fn try_now<T>(
        &self,
        path: &CachePath,
        step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno>,
    ) -> Result<NowResult<T>, StoreError> {
        let root = self.root.current();
        let seen = NegativeCache::directory_state(root.fd(), path);
        if seen.is_removed && root.counts_links {
            self.root.discard_check();
        }
        if root.negative_cache.contains(path, seen.stamp) {
            return Ok(NowResult::Absent(root.generation));
        }
        let key = path.key();
        match step(root.fd(), &key, Wait::Never) {
            Ok(Some(_)) if root.unsynced.in_doubt(&key).is_some() => {
                Ok(NowResult::Unknown(Arc::clone(&root)))
            }
            Ok(Some(found)) => Ok(NowResult::Found(found)),
            Ok(None) => {
                root.negative_cache.insert(path, seen.stamp);
                Ok(NowResult::Absent(root.generation))
            }
            Err(would_wait) if is_reason_to_wait(would_wait) => {
                Ok(NowResult::Unknown(Arc::clone(&root)))
            }
            Err(error) => Err(StoreError::new("reading", &key, error)),
        }
    }
}

/// Runs `step` on the blocking pool, where it may wait for the disk.
async fn read_on_blocking_pool<T: Send + 'static>(
    root: Arc<OpenRoot>,
    key: String,
    step: impl Fn(&OwnedFd, &str, Wait) -> Result<Option<T>, Errno> + Send + 'static,
) -> Result<Option<T>, StoreError> {
    tokio::task::spawn_blocking(move || {
        let found = step(root.fd(), &key, Wait::UntilDone);
        let found = found.map_err(|error| StoreError::new("reading", &key, error))?;
        if found.is_some() {
            root.settle(&key).map_err(|error| StoreError::new("syncing", &key, error))?;
        }
        Ok(found)
    })
    .await
    .expect("reading a file does not panic, and the pool outlives its tasks")
}

/// Returns the kind of the file at `key`, and its content if it is `wanted` and has at most
/// [`narinfo::MAX_SIZE`] bytes. Blocks. Does not count as use if the file belongs to this user.
pub(super) fn inspect(root: &OpenRoot, key: &str, wanted: bool) -> Result<Inspection, StoreError> {
    let wait = Wait::UntilDone;
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
        // Only narinfos and other small files are read into memory.
        let content = file
            .filter(|_| metadata.size <= narinfo::MAX_SIZE)
            .map(|file| read_whole(&file, metadata.size as usize, wait))
            .transpose()?;
        Ok(Inspection::Object { metadata, content, owner })
    };
    inspect().map_err(|error| StoreError::new("reading", key, error))
}

/// Whether the blocking pool must repeat the call: `EAGAIN` means that it would block, the other
/// errors that the kernel, a sandbox or the file system does not support it.
fn is_reason_to_wait(error: Errno) -> bool {
    [Errno::AGAIN, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP, Errno::INVAL].contains(&error)
}

/// Opens the regular file at `key`, or returns `None` if there is none.
fn open(root: &OwnedFd, key: &str, wait: Wait) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    Ok(open_any(root, key, wait)?.filter(|(_, stat)| is_regular(stat)))
}

/// Opens the file or directory at `key`, or returns `None` if it is absent.
fn open_any(root: &OwnedFd, key: &str, wait: Wait) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let open = |flags| match wait {
        Wait::Never => rustix::fs::openat2(root, key, flags, Mode::empty(), ResolveFlags::CACHED),
        Wait::UntilDone => rustix::fs::openat(root, key, flags, Mode::empty()),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    // Uses are recorded in access times, so reading must not change them. Only the owner of a file
    // may use `O_NOATIME`, and not every file system supports it.
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

/// Returns the time of the last use: the access time, or the modification time if that is later.
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
        // Objects are replaced by renaming, so a new object has a new inode, even if the
        // modification time is the same.
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
            Wait::UntilDone => rustix::io::pread(&file, rest, offset),
        };
        match read {
            // Another process truncated the file after it was opened.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Bytes::from(bytes))
}
