//! The operations of a store, in a directory or a bucket.

use std::fs::File;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::availability::Availability;
use super::error::StoreError;
use super::fs::FsStore;
use super::lines::has_lines;
use super::object::{Content, Listed, Metadata, Object, Removed, Stored};
use super::private_files::PrivateFiles;
#[cfg(feature = "s3")]
use super::s3::S3Store;
use super::upload::Upload;
use crate::nix::CachePath;

/// A store of objects.
#[derive(Debug)]
pub enum Store {
    /// A directory.
    Fs(FsStore),
    /// A bucket.
    #[cfg(feature = "s3")]
    S3(Box<S3Store>),
}

/// Calls a method of the same name of the directory or the bucket. A future of the bucket is boxed:
/// it is large, and every request to a directory would have its size.
macro_rules! dispatch {
    ($store:expr, $method:ident($($argument:expr),*)) => {
        match $store {
            Store::Fs(store) => store.$method($($argument),*).await,
            #[cfg(feature = "s3")]
            Store::S3(store) => Box::pin(store.$method($($argument),*)).await,
        }
    };
}

impl From<FsStore> for Store {
    fn from(store: FsStore) -> Self {
        Self::Fs(store)
    }
}

#[cfg(feature = "s3")]
impl From<S3Store> for Store {
    fn from(store: S3Store) -> Self {
        Self::S3(Box::new(store))
    }
}

impl Store {
    /// Returns the metadata of an object, or `None` if the object is absent.
    pub async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, StoreError> {
        dispatch!(self, head(path))
    }

    /// Returns an object, or `None` if it is absent.
    pub async fn get(&self, path: &CachePath) -> Result<Option<Object>, StoreError> {
        dispatch!(self, get(path))
    }

    /// Returns an object under a key that Nix does not use, as other programs name NARs, or `None`
    /// if it is absent. The key is relative: no part of it is empty, `.` or `..`.
    pub async fn get_foreign(&self, key: &str) -> Result<Option<Object>, StoreError> {
        dispatch!(self, get_foreign(key))
    }

    /// Stores an object that is in memory, durably.
    pub async fn put(&self, path: &CachePath, bytes: Bytes) -> Result<Stored, StoreError> {
        dispatch!(self, put(path, bytes))
    }

    /// Stores an object if the stored object has the entity tag `before`, or is absent if `before`
    /// is `None`, even if other processes store the same object. Otherwise does nothing. A
    /// directory does not check this, because it must not have several daemons.
    pub async fn replace(
        &self,
        path: &CachePath,
        bytes: Bytes,
        before: Option<&Bytes>,
    ) -> Result<Option<Stored>, StoreError> {
        dispatch!(self, replace(path, bytes, before))
    }

    /// Moves an object to the quarantine, durably, if it still has this entity tag. Returns false
    /// if it has another one, or is absent.
    pub async fn quarantine(&self, path: &CachePath, etag: &Bytes) -> Result<bool, StoreError> {
        dispatch!(self, quarantine(path, etag))
    }

    /// Stores a text unless the stored text has all of its lines. If another directory replaces the
    /// store's directory, the text is stored there, too. Returns `None` if nothing was stored.
    pub async fn ensure_lines(
        &self,
        path: &CachePath,
        text: Bytes,
    ) -> Result<Option<Stored>, StoreError> {
        #[cfg_attr(not(feature = "s3"), expect(irrefutable_let_patterns))]
        if let Self::Fs(store) = self {
            store.keep(path, text.clone());
        }
        match self.get(path).await?.map(|found| found.content) {
            Some(Content::Bytes(stored)) if has_lines(&stored, &text) => Ok(None),
            _ => self.put(path, text).await.map(Some),
        }
    }

    /// Records that an object was used now. Returns immediately; the use is recorded soon.
    pub fn touch(&self, path: &CachePath) {
        match self {
            Self::Fs(store) => store.touch(path),
            #[cfg(feature = "s3")]
            Self::S3(store) => store.touch(path),
        }
    }

    /// Records that an object was used now, so that [`Metadata::used`] has this time from now on.
    /// Returns false if the object is absent. A directory that cannot record uses (read-only, files
    /// of another owner) reports no error.
    pub async fn touch_now(&self, path: &CachePath) -> Result<bool, StoreError> {
        dispatch!(self, touch_now(path))
    }

    /// Removes an object, unless it was used or stored after `unused_since`. If a use happens at
    /// the same time, either the object is kept, or the use finds it absent.
    pub async fn remove(
        &self,
        path: &CachePath,
        unused_since: SystemTime,
    ) -> Result<Removed, StoreError> {
        dispatch!(self, remove(path, unused_since))
    }

    /// Announces the next removals, so that one announcement covers all of them. A directory needs
    /// no announcement.
    pub async fn will_remove(&self, paths: &[CachePath]) -> Result<(), StoreError> {
        dispatch!(self, will_remove(paths))
    }

    /// Makes removals durable.
    pub async fn sync_removals(&self) -> Result<(), StoreError> {
        dispatch!(self, sync_removals())
    }

    /// Lists all objects, in no order, with the contents of the `wanted` objects. Reading them does
    /// not count as use. An error ends the list.
    pub fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        match self {
            Self::Fs(store) => store.list(wanted),
            #[cfg(feature = "s3")]
            Self::S3(store) => store.list(wanted),
        }
    }

    /// Returns the daemon's own files in the store.
    pub fn private_files(&self) -> PrivateFiles<'_> {
        match self {
            Self::Fs(store) => PrivateFiles::Fs(store.private_files()),
            #[cfg(feature = "s3")]
            Self::S3(store) => PrivateFiles::S3(store.private_files()),
        }
    }

    /// Records all pending uses. Must be called before the process ends. A directory has none.
    pub async fn flush(&self) -> Result<(), StoreError> {
        match self {
            Self::Fs(_) => Ok(()),
            #[cfg(feature = "s3")]
            Self::S3(store) => Box::pin(store.flush()).await,
        }
    }

    /// Returns the free space in bytes, or `None` if it is unknown, as in a bucket.
    pub fn free_space(&self) -> Option<u64> {
        match self {
            Self::Fs(store) => store.free_space(),
            #[cfg(feature = "s3")]
            Self::S3(_) => None,
        }
    }

    /// Returns a temporary URL from which a client can fetch the object directly, or `None` in a
    /// directory, which has no such URLs.
    pub async fn presigned_url(&self, path: &CachePath) -> Result<Option<String>, StoreError> {
        dispatch!(self, presigned_url(path))
    }

    /// Checks whether the store is usable and writable, without changing it.
    pub async fn check(&self) -> Availability {
        dispatch!(self, check())
    }

    /// Starts a streamed upload of an object that is not in memory. `size` reserves space, if it is
    /// known in advance. Blocks.
    pub fn start_upload(
        &self,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<Box<dyn Upload>, StoreError> {
        match self {
            Self::Fs(store) => Ok(Box::new(store.start_upload(path, size)?)),
            #[cfg(feature = "s3")]
            Self::S3(store) => Ok(Box::new(store.start_upload(path, size))),
        }
    }

    /// Creates an unnamed temporary file for the upload of `path`; it is removed when it is closed.
    /// `size` is checked against the space that must stay free. Blocks.
    pub fn temporary_file(&self, path: &CachePath, size: Option<u64>) -> Result<File, StoreError> {
        match self {
            Self::Fs(store) => store.temporary_file(path, size),
            #[cfg(feature = "s3")]
            Self::S3(_) => {
                tempfile::tempfile().map_err(|error| StoreError::new("staging", &path.key(), error))
            }
        }
    }
}
