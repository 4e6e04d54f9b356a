//! Where bytes rest. A store knows objects by their [`CachePath`] and nothing of what they mean.
//!
//! Two promises belong to every [`Store`], not to one implementation. Nothing partial is ever
//! visible: an object appears, whole, when its [`Upload`] is committed, and a reader sees the old
//! object, or the new one, or none. And what was committed is durable before `commit` returns.

mod error;
pub mod fs;

use std::fs::File;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use error::StoreError;
pub use fs::FsStore;

use crate::nix::CachePath;

/// A place for objects.
pub trait Store: Send + Sync + 'static {
    /// What is known about an object without reading it; none if it is absent.
    fn head<'a>(
        &'a self,
        path: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<Metadata>, StoreError>>;

    /// An object; none if it is absent.
    fn get<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<Option<Object>, StoreError>>;

    /// Stores an object that is whole in memory, durably.
    fn put<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Stored, StoreError>>;

    /// Takes an object out of the cache and keeps it aside, where nothing is served from.
    fn quarantine<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Stages an object that is not. `size` reserves space where it is known beforehand. Blocks.
    fn begin(&self, path: &CachePath, size: Option<u64>) -> Result<Box<dyn Upload>, StoreError>;
}

/// An object on its way into the store. Dropping it aborts it: nothing of it stays.
///
/// The methods block, because hashing and unpacking go on between them: an upload is driven on a
/// thread of the blocking pool.
pub trait Upload: Send {
    /// Appends to the object.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes the object durable, then visible under its path, in place of an older one.
    fn commit(self: Box<Self>) -> Result<Stored, StoreError>;
}

/// What an object that was stored found under its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Nothing.
    New,
    /// An older one.
    Again,
}

/// What a store knows about an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Its length in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
    /// A strong entity tag, with its quotes: it changes whenever the object does.
    pub etag: Bytes,
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
}
