//! The daemon's own files in a store that are not objects, below `.nix-stored/`: pins, and the
//! collection lock.

use bytes::Bytes;

use super::collection_lock::CollectionLock;
use super::error::StoreError;
use super::fs::FsPrivateFiles;
#[cfg(feature = "s3")]
use super::s3::S3PrivateFiles;

/// The daemon's own files in a store. They are small, and have names of the form `folder/name`, which
/// the caller has checked.
#[derive(Debug, Clone, Copy)]
pub enum PrivateFiles<'a> {
    /// In a directory.
    Fs(&'a FsPrivateFiles),
    /// In a bucket.
    #[cfg(feature = "s3")]
    S3(&'a S3PrivateFiles),
}

macro_rules! dispatch {
    ($files:expr, $method:ident($($argument:expr),*)) => {
        match $files {
            PrivateFiles::Fs(files) => files.$method($($argument),*).await,
            #[cfg(feature = "s3")]
            PrivateFiles::S3(files) => files.$method($($argument),*).await,
        }
    };
}

impl PrivateFiles<'_> {
    /// Lists the names of the files in a folder, sorted and without the folder.
    pub async fn list(self, folder: &str) -> Result<Vec<String>, StoreError> {
        dispatch!(self, list(folder))
    }

    /// Reads a file, or returns `None` if it is absent.
    pub async fn read(self, name: &str) -> Result<Option<Bytes>, StoreError> {
        dispatch!(self, read(name))
    }

    /// Writes a file durably. Returns whether it replaced an older one.
    pub async fn write(self, name: &str, text: Bytes) -> Result<bool, StoreError> {
        dispatch!(self, write(name, text))
    }

    /// Removes a file durably. Returns false if it was absent.
    pub async fn remove(self, name: &str) -> Result<bool, StoreError> {
        dispatch!(self, remove(name))
    }

    /// Takes the collection lock, and cleans up what a killed collection left. Returns `None` if
    /// another collection holds the lock.
    pub async fn lock_collection(self) -> Result<Option<CollectionLock>, StoreError> {
        dispatch!(self, lock_collection())
    }

    /// Returns a readable name of the holder of the collection lock, or `None` if the lock is free.
    /// The lock of a directory does not name its holder.
    pub async fn collection_lock_holder(self) -> Result<Option<String>, StoreError> {
        match self {
            Self::Fs(_) => Ok(None),
            #[cfg(feature = "s3")]
            Self::S3(files) => files.collection_lock_holder().await,
        }
    }

    /// Breaks the collection lock in a bucket, where it outlives its holder.
    pub async fn break_collection_lock(self) -> Result<(), StoreError> {
        match self {
            Self::Fs(_) => Ok(()),
            #[cfg(feature = "s3")]
            Self::S3(files) => files.break_collection_lock().await,
        }
    }
}
