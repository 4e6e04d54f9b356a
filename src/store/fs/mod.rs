//! A flat directory: exactly the files of Nix's own `file://` cache, plus `.nix-stored/` for the
//! daemon's own files.
//!
//! ```text
//! nix-cache-info
//! <hash>.narinfo  <hash>.ls
//! nar/<file hash>.nar.xz
//! log/  realisations/  build-trace-v2/  debuginfo/
//! .nix-stored/staging/<process>/   objects before their publication
//! .nix-stored/trash/               objects during their removal, restored after a crash
//! .nix-stored/quarantine/          damaged objects, under their own names
//! .nix-stored/pins/<name>          pinned store paths
//! .nix-stored/lock                 the collection lock
//! ```
//!
//! `root` tracks the directory at the configured path; `open_root` works in an open directory.

mod check;
mod commit;

mod folder;
mod list;
mod negative_cache;
mod notes;
mod open_root;
mod quarantine;
pub mod read;
mod remove;
mod reservation;
mod root;
mod space;
mod staging;
mod unsynced;
mod upload;
mod uses;
mod whole_sync;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::{
    Availability, Listed, Lock, Metadata, Object, Removed, Store, StoreError, Stored, Upload, keep,
};
use crate::nix::CachePath;
use commit::{Committer, Object as NewObject};
pub use folder::OWN_FOLDER;
use open_root::OpenRoot;
use read::Reader;
use remove::Trash;
pub use reservation::MinimumRate;
use reservation::Reservations;
pub use root::OpenError;
use root::{Role, Root};
use space::Space;
use upload::FsUpload;
use uses::Uses;

/// A store in a directory.
#[derive(Debug)]
pub struct FsStore {
    root: Arc<Root>,
    reader: Reader,
    committer: Arc<Committer>,
    reservations: Arc<Reservations>,
    uses: Uses,
    trash: Arc<Trash>,
    space: Space,
}

impl FsStore {
    /// Opens the store in `root`, creates missing directories, and removes the staging directories
    /// of ended processes. `reserve` bytes of the disk stay free.
    pub fn open(root: &Path, reserve: u64) -> Result<Self, OpenError> {
        Self::with_minimum_rate(root, reserve, MinimumRate::default())
    }

    /// The same, where uploads keep the space that they announce as long as they are this fast.
    pub fn with_minimum_rate(
        root: &Path,
        reserve: u64,
        rate: MinimumRate,
    ) -> Result<Self, OpenError> {
        Ok(Self::new(Root::open(root, Role::Daemon)?, reserve, rate))
    }

    /// Opens a store that is there, and changes nothing by that. It may be one that cannot be
    /// written to.
    pub fn open_existing(root: &Path, reserve: u64) -> Result<Self, OpenError> {
        Ok(Self::new(Root::open(root, Role::Command)?, reserve, MinimumRate::default()))
    }

    fn new(root: Root, reserve: u64, rate: MinimumRate) -> Self {
        let (root, reservations) = (Arc::new(root), Arc::new(Reservations::new(rate)));
        Self {
            reader: Reader::new(Arc::clone(&root)),
            committer: Arc::new(Committer::start(Arc::clone(&root), Arc::clone(&reservations))),
            reservations,
            uses: Uses::start(Arc::clone(&root)),
            trash: Arc::default(),
            space: Space::new(Arc::clone(&root), reserve),
            root,
        }
    }

    /// Does `work` in the directory that the path leads to, where it may wait for the disk.
    async fn in_the_root<T: Send + 'static>(
        &self,
        doing: &'static str,
        key: String,
        work: impl FnOnce(&OpenRoot) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = Arc::clone(&self.root);
        let work = move || work(&*root.look().map_err(io::Error::other)?);
        in_the_pool(doing, key, work).await
    }

    /// The same for a change, which must be in the directory that the path leads to afterwards.
    async fn change_the_root<T: Send + 'static>(
        &self,
        doing: &'static str,
        key: String,
        work: impl FnOnce(&OpenRoot) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = Arc::clone(&self.root);
        let work = move || {
            let open = root.look_and_wait().map_err(io::Error::other)?;
            let done = work(&open)?;
            root.still_leads_to(&open).map_err(io::Error::other)?;
            Ok(done)
        };
        in_the_pool(doing, key, work).await
    }
}

impl Store for FsStore {
    fn head<'a>(
        &'a self,
        path: &'a CachePath,
    ) -> BoxFuture<'a, Result<Option<Metadata>, StoreError>> {
        self.reader.head(path).boxed()
    }

    fn get<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<Option<Object>, StoreError>> {
        self.reader.get(path).boxed()
    }

    fn get_foreign<'a>(
        &'a self,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<Object>, StoreError>> {
        self.reader.get_foreign(key).boxed()
    }

    fn put<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            let key = path.key();
            self.space.check(&key, bytes.len() as u64)?;
            let done = self.committer.commit(NewObject::InMemory(bytes), key.clone());
            done.await
                .map_err(|_| io::Error::other("the commit thread has ended"))
                .and_then(|done| done)
                .map_err(|error| StoreError::of_upload("storing", &key, error))
        }
        .boxed()
    }

    fn keep<'a>(
        &'a self,
        path: &'a CachePath,
        text: Bytes,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.root.keep(path.key(), text.clone());
        keep(self, path, text).boxed()
    }

    fn replace<'a>(
        &'a self,
        path: &'a CachePath,
        bytes: Bytes,
        _: Option<&'a Bytes>,
    ) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        // No other process stores here: several daemons over one directory are not supported.
        async move { self.put(path, bytes).await.map(Some) }.boxed()
    }

    fn quarantine<'a>(
        &'a self,
        path: &'a CachePath,
        etag: &'a Bytes,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let (key, etag) = (path.key(), etag.clone());
        let put_aside = {
            let key = key.clone();
            move |root: &OpenRoot| quarantine::put_aside(root, &key, &etag)
        };
        self.change_the_root("quarantining", key, put_aside).boxed()
    }

    fn touch(&self, path: &CachePath) {
        self.uses.note(path);
    }

    fn touch_now<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            loop {
                let generation = self.root.current().generation;
                // The missing object may be in a new directory.
                if self.uses.mark(path).await? {
                    return Ok(true);
                }
                if self.root.confirm().await? == generation {
                    return Ok(false);
                }
            }
        }
        .boxed()
    }

    fn remove<'a>(
        &'a self,
        path: &'a CachePath,
        unused_since: SystemTime,
    ) -> BoxFuture<'a, Result<Removed, StoreError>> {
        let (trash, key, root) = (Arc::clone(&self.trash), path.key(), Arc::clone(&self.root));
        let remove = {
            let key = key.clone();
            move || trash.remove(&root.current(), &key, unused_since)
        };
        in_the_pool("removing", key, remove).boxed()
    }

    fn sync_removals(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let trash = Arc::clone(&self.trash);
        self.change_the_root("syncing", ".".to_owned(), move |root| trash.sync(root)).boxed()
    }

    fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        list::list(Arc::clone(&self.root), wanted)
    }

    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>> {
        let folder = folder.to_owned();
        self.in_the_root("listing", folder.clone(), move |root| notes::names(root, &folder)).boxed()
    }

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        let name = name.to_owned();
        self.in_the_root("reading", name.clone(), move |root| notes::read(root, &name)).boxed()
    }

    fn set_note<'a>(
        &'a self,
        name: &'a str,
        text: Option<Bytes>,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let name = name.to_owned();
        let set = {
            let name = name.clone();
            move |root: &OpenRoot| notes::set(root, &name, text.as_deref())
        };
        self.change_the_root("writing", name, set).boxed()
    }

    fn lock(&self) -> BoxFuture<'_, Result<Option<Lock>, StoreError>> {
        let trash = Arc::clone(&self.trash);
        let lock = move |root: &OpenRoot| match notes::lock(root)? {
            Some(lock) => trash.begin(root).map(|()| Some(lock)),
            None => Ok(None),
        };
        self.in_the_root("locking", "lock".to_owned(), lock).boxed()
    }

    fn free_space(&self) -> Option<u64> {
        self.space.free().ok()
    }

    fn check(&self) -> BoxFuture<'_, Availability> {
        let (root, space) = (Arc::clone(&self.root), self.space.clone());
        let check = move || Ok(check::check(&root, &space));
        let checked = in_the_pool("checking", check::KEY.to_owned(), check);
        async move { checked.await.unwrap_or_else(Availability::Unusable) }.boxed()
    }

    fn start_upload(
        &self,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<Box<dyn Upload>, StoreError> {
        let root = self.root.look_and_wait()?;
        let (space, committer) = (self.space.clone(), Arc::clone(&self.committer));
        let upload = FsUpload::begin(root, committer, &self.reservations, space, path.key(), size)?;
        Ok(Box::new(upload))
    }

    fn scratch(&self, path: &CachePath, size: Option<u64>) -> Result<File, StoreError> {
        let key = path.key();
        self.space.check(&key, size.unwrap_or_default())?;
        let root = self.root.look_and_wait()?;
        // Dropping the second removes its name.
        let (file, _staged) =
            root.stage().map_err(|error| StoreError::of_upload("staging", &key, error))?;
        Ok(file)
    }
}

/// Runs `work` where it may wait for the disk.
async fn in_the_pool<T: Send + 'static>(
    doing: &'static str,
    key: String,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|done| done).map_err(|error| StoreError::new(doing, &key, error))
}
