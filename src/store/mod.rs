//! Storage of objects. A store knows objects by their [`CachePath`], and nothing about their
//! meaning.
//!
//! Every [`Store`] makes two promises, whatever the implementation. Nothing partial is ever
//! visible: an object appears, whole, when its [`Upload`] is committed, and a reader sees the old
//! object, the new object, or none. And a committed object is durable before `commit` returns.

pub mod background;
mod error;
pub mod fs;
#[cfg(feature = "s3")]
pub mod s3;
mod keyed_locks;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};

pub use error::{RemoteTrouble, StoreError, UnusableDirectory};
pub use fs::{FsStore, MinimumRate};
pub use keyed_locks::KeyedLocks;
#[cfg(feature = "s3")]
pub use s3::S3Store;

use crate::nix::CachePath;
use fs::read::read_chunk;

/// A store of objects.
pub trait Store: Send + Sync + 'static {
    /// Returns the metadata of an object, or `None` if the object is absent.
    fn head<'a>(
        &'a self,
        path: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<Metadata>, StoreError>>;

    /// Returns an object, or `None` if it is absent.
    fn get<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<Option<Object>, StoreError>>;

    /// Returns an object under a key that Nix does not use, as other programs name NARs, or `None`
    /// if it is absent. The key is relative: no part of it is empty, `.` or `..`.
    fn get_foreign<'a>(&'a self, key: &'a str)
    -> BoxFuture<'a, Result<Option<Object>, StoreError>>;

    /// Stores an object that is in memory, durably.
    fn put<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Stored, StoreError>>;

    /// Stores an object in place of the object with the entity tag `before`, or of an absent
    /// object, even if other processes store the same object. Does nothing if the stored object is
    /// another one by now.
    fn replace<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
        before: Option<&'a Bytes>,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>>;

    /// Moves an object to the quarantine, durably, if it still has this entity tag. Returns false
    /// if it has another one, or is absent.
    fn quarantine<'a>(
        &'a self,
        path: &'a CachePath,
        etag: &'a Bytes,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Stores a text if it is missing or the stored text lacks one of its lines; now, and in any
    /// directory that takes the place of the store's directory. Returns `None` if it was not
    /// necessary.
    fn keep<'a>(
        &'a self,
        path: &'a CachePath,
        text: Bytes,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>>;

    /// Records soon that an object was used now, without waiting for it.
    fn touch(&self, path: &CachePath);

    /// Records that an object was used now, so that [`Metadata::used`] has this time from now on.
    /// Returns false if the object is absent. A directory that cannot record uses (read-only, files
    /// of another owner) reports no error.
    fn touch_now<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Removes an object, unless it was used or stored after `unused_since`. If a use happens at
    /// the same time, either the object is kept, or the use finds it absent.
    fn remove<'a>(
        &'a self,
        path: &'a CachePath,
        unused_since: SystemTime,
    ) -> BoxFuture<'a, Result<Removed, StoreError>>;

    /// Announces the next removals, so that one announcement covers all of them.
    fn will_remove<'a>(&'a self, _: &'a [CachePath]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Makes removals durable.
    fn sync_removals(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Lists all objects, in no order, with the contents of the `wanted` objects. Reading them does
    /// not count as use. An error ends the list.
    fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>>;

    /// Lists the names of the notes in a folder.
    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>>;

    /// Returns a note: a small file of the cache that is not an object. The caller has checked its
    /// name, `folder/name`.
    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// Stores a note durably, in place of an older one, or removes it. Returns false if there was
    /// none.
    fn set_note<'a>(
        &'a self,
        name: &'a str,
        text: Option<Bytes>,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Takes the collection lock, which is held until the guard is dropped. Returns `None` if
    /// another collection holds it.
    fn lock(&self) -> BoxFuture<'_, Result<Option<Lock>, StoreError>>;

    /// Returns a readable name of the holder of the collection lock, if the store knows it; `None`
    /// if the lock is free.
    fn lock_holder(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// Breaks the collection lock, in stores where it outlives its holder.
    fn break_lock(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Records all pending uses. Must be called before the process ends.
    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Returns the free space in bytes, or `None` if it is unknown.
    fn free_space(&self) -> Option<u64>;

    /// Returns a temporary URL from which a client can fetch the object directly, or `None` if the
    /// store has no such URLs.
    fn presigned_url<'a>(
        &'a self,
        _: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<String>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// Checks whether the store is usable and writable, without changing it.
    fn check(&self) -> BoxFuture<'_, Availability>;

    /// Starts a streamed upload of an object that is not in memory. `size` reserves space, if it is
    /// known in advance. Blocks.
    fn start_upload(
        &self,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<Box<dyn Upload>, StoreError>;

    /// Creates an unnamed temporary file for the upload of `path`; it is removed when it is closed.
    /// `size` is checked against the space that must stay free. Blocks.
    fn scratch(&self, path: &CachePath, size: Option<u64>) -> Result<File, StoreError>;
}

/// Stores a text if it is missing or the stored text lacks one of its lines.
async fn keep(
    store: &dyn Store,
    path: &CachePath,
    text: Bytes,
) -> Result<Option<Stored>, StoreError> {
    match store.get(path).await?.map(|found| found.content) {
        Some(Content::Bytes(there)) if has_lines(&there, &text) => Ok(None),
        _ => store.put(path, text).await.map(Some),
    }
}

/// Whether all lines of `wanted` are in `text`.
fn has_lines(text: &[u8], wanted: &[u8]) -> bool {
    fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
        text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)
    }
    lines(wanted).all(|line| line.is_empty() || lines(text).any(|there| there == line))
}

/// Which operations a store currently supports.
#[derive(Debug)]
pub enum Availability {
    /// Objects can be read and stored.
    ReadWrite,
    /// Objects can be read, but not stored.
    ReadOnly(StoreError),
    /// Objects can be neither read nor stored.
    Unusable(StoreError),
}

/// A streamed upload of an object. Dropping it aborts it, and nothing of it remains.
///
/// The methods block, because the caller hashes and unpacks between them: an upload runs on a
/// thread of the blocking pool.
pub trait Upload: Send {
    /// Appends to the object.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Marks the upload as slow or not. A slow upload returns limited resources, such as memory.
    fn set_slow(&mut self, _slow: bool) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the file that contains everything that has been and will be written, from its
    /// beginning, or `None` if there is no such file.
    fn staged(&self) -> Result<Option<File>, StoreError>;

    /// Makes the object durable, then visible under its path, in place of an older one.
    fn commit(self: Box<Self>) -> Result<Stored, StoreError>;
}

/// The effect of storing an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// There was no object of this name.
    Created,
    /// There was an object of this name. It was replaced, or it already had the uploaded content.
    Replaced,
}

/// What a store knows about an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The length in bytes.
    pub size: u64,
    /// The time of the last write.
    pub modified: SystemTime,
    /// The last recorded use. Writing the object counts as use.
    pub used: SystemTime,
    /// The strong entity tag, with its quotes. It changes whenever the object does.
    pub etag: Bytes,
}

/// The result of removing an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The object was removed.
    Gone,
    /// The object was absent.
    Absent,
    /// The object was used in the meantime, and is kept.
    InUse,
}

/// The collection lock, held until it is dropped.
pub struct Lock {
    _guard: Box<dyn std::any::Any + Send + Sync>,
}

impl Lock {
    /// Creates a lock that is released when `guard` is dropped.
    pub(crate) fn new(guard: impl std::any::Any + Send + Sync) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

/// An entry of the list of a store.
#[derive(Debug)]
pub enum Listed {
    /// An object.
    Object(ListedObject),
    /// An object that could not be read.
    Unreadable(CachePath, StoreError),
    /// Something other than a file with the name of an object, such as a directory, with its entity
    /// tag. It cannot be served, and no object can be stored in its place.
    NoFile(CachePath, Bytes),
    /// A name that no object and no file of the daemon has.
    Foreign(String),
}

/// A listed object.
#[derive(Debug)]
pub struct ListedObject {
    /// The name.
    pub path: CachePath,
    /// The metadata.
    pub metadata: Metadata,
    /// The content, if it was wanted. A narinfo that is larger than [`narinfo::MAX_SIZE`] is listed
    /// as unreadable; other objects of that size have no content here.
    ///
    /// [`narinfo::MAX_SIZE`]: crate::nix::narinfo::MAX_SIZE
    pub content: Option<Bytes>,
}

/// An object in a store.
#[derive(Debug)]
pub struct Object {
    /// The metadata.
    pub metadata: Metadata,
    /// The content.
    pub content: Content,
}

/// The bytes of an object.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, from its beginning to the length in the metadata.
    File(File),
    /// On a server.
    Stream(Box<dyn RangeRead>),
}

/// The number of bytes that [`Content::into_stream`] reads from a file at a time.
const READ_CHUNK: u64 = 256 * 1024;

impl Content {
    /// Returns the bytes in `range`, which must lie within the object.
    pub fn into_stream(self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        match self {
            Self::Bytes(bytes) => {
                let bytes = bytes.slice(range.start as usize..range.end as usize);
                stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed()
            }
            Self::File(file) => file_stream(Arc::new(file), range),
            Self::Stream(bytes) => bytes.read(range),
        }
    }
}

/// The bytes in a range of a file, read on the blocking pool.
pub fn file_stream(file: Arc<File>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
    let chunks = stream::try_unfold((file, range), |(file, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let end = range.end.min(range.start + READ_CHUNK);
        let length = (end - range.start) as usize;
        let chunk = read_chunk(Arc::clone(&file), range.start, length).await?;
        Ok(Some((chunk, (file, end..range.end))))
    });
    chunks.boxed()
}

/// The bytes of an object on a server.
pub trait RangeRead: Send + Sync {
    /// Whether reading holds a connection of its own until all bytes have been read.
    fn is_download(&self) -> bool;

    /// Reads a range of the bytes.
    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;
}

impl std::fmt::Debug for dyn RangeRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RangeRead")
    }
}

#[cfg(test)]
mod tests {
    use super::has_lines;

    #[test]
    fn a_text_with_more_lines_has_those_that_are_wanted() {
        let ours = b"StoreDir: /nix/store\nPriority: 30\n";
        assert!(has_lines(ours, ours));
        assert!(has_lines(b"# mine\nPriority: 30\r\nStoreDir: /nix/store", ours));
        assert!(!has_lines(b"StoreDir: /nix/store\nPriority: 3\n", ours));
        assert!(!has_lines(b"", ours));
    }
}
