//! The store in a directory: exactly the files of Nix's own `file://` cache, plus `.nix-stored/`
//! for the daemon's own files.
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
//! `FsStore` has the operations. `root` tracks the directory at the configured path; `open_root` is
//! an open directory, and `folder` has the system calls in it. `read` reads objects, first without
//! blocking; `blocking` runs the other operations on the blocking pool. An `upload` writes a
//! `staging` file in `reservation`s of disk `space`, and `commit` publishes batches of files
//! durably: `whole_sync` finds out how they may be synced, and `unsynced` remembers failures.
//! `negative_cache` remembers absent narinfos. `uses` records uses in access times, `list` lists
//! objects, `remove` and `quarantine` move them away, `private_files` has pins and the collection
//! lock, and `check` is the health check.

mod blocking;
mod check;
mod commit;
mod folder;
mod list;
mod negative_cache;
mod open_root;
mod private_files;
mod quarantine;
mod read;
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
use std::future::{Ready, ready};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::nix::CachePath;
use crate::store::{Availability, Listed, Metadata, Object, Removed, StoreError, Stored};
use commit::{Committer, NewObject};
pub use folder::OWN_FOLDER;
pub(super) use private_files::FsPrivateFiles;
use read::ObjectReader;
use remove::Trash;
pub use reservation::MinimumRate;
use reservation::Reservations;
pub(super) use root::OpenDirectoryError;
use root::{Role, Root};
use space::Space;
use upload::FsUpload;
use uses::FsUses;

/// A store in a directory. [`Store`](super::Store) describes the operations.
#[derive(Debug)]
pub struct FsStore {
    root: Arc<Root>,
    reader: ObjectReader,
    committer: Arc<Committer>,
    reservations: Arc<Reservations>,
    uses: FsUses,
    trash: Arc<Trash>,
    space: Space,
    private_files: FsPrivateFiles,
}

impl FsStore {
    /// Opens the store in `root`, creates missing directories, and removes the staging directories
    /// of ended processes. `reserve` bytes of the disk stay free.
    pub fn open(root: &Path, reserve: u64) -> Result<Self, OpenDirectoryError> {
        Self::with_minimum_rate(root, reserve, MinimumRate::default())
    }

    /// Opens the store like [`open`](Self::open). An upload keeps its reserved space while it is at
    /// least as fast as `rate`.
    pub fn with_minimum_rate(
        root: &Path,
        reserve: u64,
        rate: MinimumRate,
    ) -> Result<Self, OpenDirectoryError> {
        Ok(Self::new(Root::open(root, Role::Daemon)?, reserve, rate))
    }

    /// Opens an existing store, which may be read-only, without changing anything.
    pub fn open_existing(root: &Path, reserve: u64) -> Result<Self, OpenDirectoryError> {
        Ok(Self::new(Root::open(root, Role::Command)?, reserve, MinimumRate::default()))
    }

    fn new(root: Root, reserve: u64, rate: MinimumRate) -> Self {
        let (root, reservations) = (Arc::new(root), Arc::new(Reservations::new(rate)));
        let trash = Arc::<Trash>::default();
        Self {
            reader: ObjectReader::new(Arc::clone(&root)),
            committer: Arc::new(Committer::start(Arc::clone(&root), Arc::clone(&reservations))),
            reservations,
            uses: FsUses::start(Arc::clone(&root)),
            private_files: FsPrivateFiles::new(Arc::clone(&root), Arc::clone(&trash)),
            trash,
            space: Space::new(Arc::clone(&root), reserve),
            root,
        }
    }

    pub(super) async fn head(&self, path: &CachePath) -> Result<Option<Metadata>, StoreError> {
        self.reader.head(path).await
    }

    pub(super) async fn get(&self, path: &CachePath) -> Result<Option<Object>, StoreError> {
        self.reader.get(path).await
    }

    pub(super) async fn get_foreign(&self, key: &str) -> Result<Option<Object>, StoreError> {
        self.reader.get_foreign(key).await
    }

    pub(super) async fn put(&self, path: &CachePath, bytes: Bytes) -> Result<Stored, StoreError> {
        let key = path.key();
        self.space.check(&key, bytes.len() as u64)?;
        let done = self.committer.commit(NewObject::InMemory(bytes), key.clone());
        done.await
            .map_err(|_| io::Error::other("the commit thread has ended"))
            .and_then(|done| done)
            .map_err(|error| StoreError::of_upload("storing", &key, error))
    }

    /// Does not check `before`: a directory must not have several daemons.
    pub(super) async fn replace(
        &self,
        path: &CachePath,
        bytes: Bytes,
        _before: Option<&Bytes>,
    ) -> Result<Option<Stored>, StoreError> {
        self.put(path, bytes).await.map(Some)
    }

    /// Stores `text` also in each directory that replaces this one.
    pub(super) fn keep(&self, path: &CachePath, text: Bytes) {
        self.root.keep(path.key(), text);
    }

    pub(super) async fn quarantine(
        &self,
        path: &CachePath,
        etag: &Bytes,
    ) -> Result<bool, StoreError> {
        let (key, etag) = (path.key(), etag.clone());
        blocking::change_in(&self.root, "quarantining", key.clone(), move |root| {
            quarantine::quarantine(root, &key, &etag)
        })
        .await
    }

    pub(super) fn touch(&self, path: &CachePath) {
        self.uses.note(path);
    }

    pub(super) async fn touch_now(&self, path: &CachePath) -> Result<bool, StoreError> {
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

    pub(super) async fn remove(
        &self,
        path: &CachePath,
        unused_since: SystemTime,
    ) -> Result<Removed, StoreError> {
        let (trash, key, root) = (Arc::clone(&self.trash), path.key(), Arc::clone(&self.root));
        blocking::run("removing", key.clone(), move || {
            trash.remove(&root.current(), &key, unused_since)
        })
        .await
    }

    pub(super) fn will_remove(&self, _: &[CachePath]) -> Ready<Result<(), StoreError>> {
        ready(Ok(()))
    }

    pub(super) async fn sync_removals(&self) -> Result<(), StoreError> {
        let trash = Arc::clone(&self.trash);
        let sync = move |root: &_| trash.sync(root);
        blocking::change_in(&self.root, "syncing", ".".to_owned(), sync).await
    }

    pub(super) fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        list::list(Arc::clone(&self.root), wanted)
    }

    pub(super) fn private_files(&self) -> &FsPrivateFiles {
        &self.private_files
    }

    pub(super) fn free_space(&self) -> Option<u64> {
        self.space.free().ok()
    }

    pub(super) fn presigned_url(&self, _: &CachePath) -> Ready<Result<Option<String>, StoreError>> {
        ready(Ok(None))
    }

    pub(super) async fn check(&self) -> Availability {
        let (root, space) = (Arc::clone(&self.root), self.space.clone());
        let check = move || Ok(check::check(&root, &space));
        let checked = blocking::run("checking", check::DIRECTORY_KEY.to_owned(), check);
        checked.await.unwrap_or_else(Availability::Unusable)
    }

    pub(super) fn start_upload(
        &self,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<FsUpload, StoreError> {
        let root = self.root.check_path_and_wait()?;
        let (space, committer) = (self.space.clone(), Arc::clone(&self.committer));
        FsUpload::start(root, committer, &self.reservations, space, path.key(), size)
    }

    pub(super) fn temporary_file(
        &self,
        path: &CachePath,
        size: Option<u64>,
    ) -> Result<File, StoreError> {
        let key = path.key();
        self.space.check(&key, size.unwrap_or_default())?;
        let root = self.root.check_path_and_wait()?;
        // Dropping the second value removes the name of the file.
        let (file, _staged) =
            root.stage().map_err(|error| StoreError::of_upload("staging", &key, error))?;
        Ok(file)
    }
}
