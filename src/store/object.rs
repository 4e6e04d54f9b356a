//! Objects, their metadata, and the ways to read their bytes.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::error::StoreError;
use crate::nix::{CachePath, Sha256Hash};

/// The effect of storing an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// There was no object of this name.
    Created,
    /// There was an object of this name. It was replaced, or it already had the uploaded content.
    Replaced,
}

/// The metadata of an object, which a store has without reading the object.
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

impl Metadata {
    /// Returns the metadata of a generated object, which is in memory only.
    pub fn of(text: &[u8]) -> Self {
        let now = SystemTime::now();
        let etag = format!("\"{}\"", Sha256Hash::of(text).to_nix32()).into();
        Self { size: text.len() as u64, modified: now, used: now, etag }
    }
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

/// An entry of the list of a store.
#[derive(Debug)]
pub enum Listed {
    /// An object.
    Object(ListedObject),
    /// An object that could not be read.
    Unreadable(CachePath, StoreError),
    /// A directory or special file with the name of an object, with its entity tag. It
    /// cannot be served, and no object can be stored in its place.
    NoFile(CachePath, Bytes),
    /// A file whose name is neither that of an object nor of a file of the daemon.
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
const FILE_CHUNK_SIZE: u64 = 256 * 1024;

impl Content {
    /// Returns the bytes in `range`. The stream fails if the range is not within the object.
    pub fn into_stream(self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        match self {
            Self::Bytes(bytes) => {
                // The object may be another one than the one that the range was made for.
                let range = range.start as usize..range.end as usize;
                let part = match bytes.get(range.clone()) {
                    Some([]) => None,
                    Some(_) => Some(Ok(bytes.slice(range))),
                    None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
                };
                stream::iter(part).boxed()
            }
            Self::File(file) => file_stream(Arc::new(file), range),
            Self::Stream(bytes) => bytes.read(range),
        }
    }
}

/// Returns a stream of the bytes in a range of a file, which is read on the blocking pool.
pub fn file_stream(file: Arc<File>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
    let chunks = stream::try_unfold((file, range), |(file, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let end = range.end.min(range.start + FILE_CHUNK_SIZE);
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

impl fmt::Debug for dyn RangeRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RangeRead")
    }
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
