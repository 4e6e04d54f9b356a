//! Storage of objects. A store knows objects by their [`CachePath`](crate::nix::CachePath), and
//! nothing about their meaning.
//!
//! A [`Store`] makes two promises, in a directory as in a bucket. Nothing partial is ever visible: an
//! object appears, whole, when its [`Upload`] is committed, and a reader sees the old object, the new
//! object, or none. And a committed object is durable before `commit` returns.
//!
//! `dispatch` has the operations, which `fs` and `s3` implement: `object`, `upload`,
//! `private_files`, `collection_lock`, `availability` and `error` have the types of their
//! parameters and results. `health` caches checks of a store, `keyed_locks` has locks by name,
//! `background` starts threads of low priority, `lines` compares texts, and `foreign` has the keys
//! of objects that other programs stored.

mod availability;
pub mod background;
mod collection_lock;
mod dispatch;
mod error;
mod foreign;
mod fs;
mod health;
mod keyed_locks;
mod lines;
mod object;
mod private_files;
#[cfg(feature = "s3")]
mod s3;
mod upload;

pub use availability::Availability;
pub use collection_lock::CollectionLock;
pub use dispatch::Store;
pub use error::{RemoteFailure, StoreError, UnusableDirectory};
pub use foreign::foreign_key;
pub use fs::{FsStore, MinimumRate, OWN_FOLDER};
pub use health::{Health, HealthWatch};
pub use keyed_locks::KeyedLocks;
pub use object::{
    Content, Listed, ListedObject, Metadata, Object, RangeRead, Removed, Stored, file_stream,
    read_chunk,
};
pub use private_files::PrivateFiles;
#[cfg(feature = "s3")]
pub use s3::S3Store;
pub use upload::Upload;
