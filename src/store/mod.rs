//! Where bytes rest. A store knows objects by their [`CachePath`] and nothing of what they mean.
//!
//! Two promises belong to every [`Store`], not to one implementation. Nothing partial is ever
//! visible: an object appears, whole, when its [`Upload`] is committed, and a reader sees the old
//! object, or the new one, or none. And what was committed is durable before `commit` returns.

pub mod background;
mod error;
pub mod fs;
#[cfg(feature = "s3")]
pub mod s3;
mod turns;

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
#[cfg(feature = "s3")]
pub use s3::S3Store;
pub use turns::Turns;

use crate::nix::CachePath;
use fs::read::read_chunk;

/// A place for objects.
pub trait Store: Send + Sync + 'static {
    /// What is known about an object without reading it; none if it is absent.
    fn head<'a>(
        &'a self,
        path: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<Metadata>, StoreError>>;

    /// An object; none if it is absent.
    fn get<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<Option<Object>, StoreError>>;

    /// An object under a key that is not one of Nix's own, as other programs name NARs; none if it is
    /// absent. The key is relative: no part of it is empty, `.` or `..`.
    fn get_foreign<'a>(&'a self, key: &'a str)
    -> BoxFuture<'a, Result<Option<Object>, StoreError>>;

    /// Stores an object that is whole in memory, durably.
    fn put<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Stored, StoreError>>;

    /// Does the same in place of the object with the entity tag `before`, or where there is none, also
    /// where other processes store the same; nothing where there is another one by now.
    fn replace<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
        before: Option<&'a Bytes>,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>>;

    /// Takes an object out of the cache, durably, and keeps it aside, where nothing is served from;
    /// only if it still has this entity tag. False if it has not, or is absent.
    fn quarantine<'a>(
        &'a self,
        path: &'a CachePath,
        etag: &'a Bytes,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Stores a text of lines if it is missing, or if the one that is there lacks one of its lines;
    /// now, and in whatever takes the place of what the store is in. None if it was there.
    fn keep<'a>(
        &'a self,
        path: &'a CachePath,
        text: Bytes,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>>;

    /// Says of an object that it was used now; that is recorded some time soon, and nobody waits.
    fn note_used(&self, path: &CachePath);

    /// Says of an object that it was used now, so that [`Metadata::used`] says it from now on. False
    /// if it is absent. A directory that cannot record it (read-only, another owner's files) is silent.
    fn mark_used<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Removes an object, unless it was used or stored after `unused_since`. A use that this races
    /// with is either seen, and the object stays, or finds the object absent.
    fn remove<'a>(
        &'a self,
        path: &'a CachePath,
        unused_since: SystemTime,
    ) -> BoxFuture<'a, Result<Removed, StoreError>>;

    /// Says what will be removed next, so that it is said once for all of them.
    fn will_remove<'a>(&'a self, _: &'a [CachePath]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Makes what was removed stay removed, whatever happens to the machine.
    fn sync_removals(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Everything that is there, in no order, with the content of the objects that are `wanted`.
    /// Reading for this does not count as use. After an error nothing follows.
    fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>>;

    /// The names of the notes in a folder.
    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>>;

    /// A note: a small text that the cache keeps for itself, aside from its objects. Its name has
    /// been checked by the caller: `folder/name`.
    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// Keeps a note durably, in place of an older one, or takes it away. False if there was none.
    fn set_note<'a>(
        &'a self,
        name: &'a str,
        text: Option<Bytes>,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// The right to collect garbage, for as long as the guard lives; none if somebody has it.
    fn lock(&self) -> BoxFuture<'_, Result<Option<Lock>, StoreError>>;

    /// Who has that right, for people, where that can be known; none if nobody has it.
    fn lock_holder(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// Takes that right from whoever has it, where it outlives its holder.
    fn break_lock(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Records what it was told of and has not recorded yet. To be called before the process ends.
    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// How much space objects may still take, in bytes; none where nobody knows.
    fn free_space(&self) -> Option<u64>;

    /// Where a client can fetch an object without us, for some time; none if there is no such place.
    fn link<'a>(&'a self, _: &'a CachePath) -> BoxFuture<'a, Result<Option<String>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// What can be done with the store, as far as that can be seen without changing it.
    fn condition(&self) -> BoxFuture<'_, Condition>;

    /// Stages an object that is not. `size` reserves space where it is known beforehand. Blocks.
    fn begin(&self, path: &CachePath, size: Option<u64>) -> Result<Box<dyn Upload>, StoreError>;

    /// An empty file without a name, for what has arrived for `path` and is no object yet. It goes
    /// when it is closed. `size` is checked against the space that shall stay free. Blocks.
    fn scratch(&self, path: &CachePath, size: Option<u64>) -> Result<File, StoreError>;
}

/// Stores a text of lines where it is missing, or lacks one of them.
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

/// What can be done with a store.
#[derive(Debug)]
pub enum Condition {
    /// Everything.
    Good,
    /// Objects can be read, and none can be stored.
    ReadOnly(StoreError),
    /// Nothing.
    Unusable(StoreError),
}

/// An object on its way into the store. Dropping it aborts it: nothing of it stays.
///
/// The methods block, because hashing and unpacking go on between them: an upload is driven on a
/// thread of the blocking pool.
pub trait Upload: Send {
    /// Appends to the object.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Says whether more of the object hardly arrives from now on. What is limited, as memory is, is
    /// given back meanwhile.
    fn set_slow(&mut self, _slow: bool) -> Result<(), StoreError> {
        Ok(())
    }

    /// A file that has what has been written so far, and what will be, from its beginning; none where
    /// that is elsewhere.
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
    /// Its length in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
    /// When it was used for the last time, as far as that was recorded; being written is a use.
    pub used: SystemTime,
    /// A strong entity tag, with its quotes: it changes whenever the object does.
    pub etag: Bytes,
}

/// What became of an object that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It was not there.
    Absent,
    /// It was used since.
    InUse,
}

/// The right to collect garbage.
pub struct Lock {
    /// Ends with it.
    _guard: Box<dyn std::any::Any + Send + Sync>,
}

impl Lock {
    /// A right that ends when `guard` is dropped.
    pub(crate) fn new(guard: impl std::any::Any + Send + Sync) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

/// What is found by going through everything.
#[derive(Debug)]
pub enum Listed {
    /// An object.
    Object(ListedObject),
    /// An object that could not be read.
    Unreadable(CachePath, StoreError),
    /// Something else than a file that has the name of an object, such as a directory, with its
    /// entity tag. It cannot be served, and nothing can be stored in its place.
    NoFile(CachePath, Bytes),
    /// What no object is named like, and none of ours.
    Foreign(String),
}

/// An object that was found by going through all.
#[derive(Debug)]
pub struct ListedObject {
    /// Its name.
    pub path: CachePath,
    /// What is known about it.
    pub metadata: Metadata,
    /// Its content, if that was wanted. A narinfo that is larger than [`narinfo::MAX_SIZE`] is
    /// listed as unreadable; other objects of that size have no content here.
    ///
    /// [`narinfo::MAX_SIZE`]: crate::nix::narinfo::MAX_SIZE
    pub content: Option<Bytes>,
}

/// An object as it is found in a store.
#[derive(Debug)]
pub struct Object {
    /// What is known about it.
    pub metadata: Metadata,
    /// Its bytes.
    pub content: Content,
}

/// The bytes of an object, where they are.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, from its beginning to the length that the metadata says.
    File(File),
    /// Elsewhere.
    Stream(Box<dyn Ranged>),
}

/// The number of bytes that [`Content::into_stream`] reads from a file at a time.
const READ_CHUNK: u64 = 256 * 1024;

impl Content {
    /// The bytes in `range`, which must lie within the object.
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

/// The bytes of an object that have to be fetched.
pub trait Ranged: Send + Sync {
    /// Whether they come over a connection of their own, which is held until they have been read.
    fn is_download(&self) -> bool;

    /// A part of them.
    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;
}

impl std::fmt::Debug for dyn Ranged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ranged")
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
