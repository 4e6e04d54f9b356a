//! The flat directory: exactly the files of Nix's own `file://` cache, plus `.nix-stored/` for
//! what the daemon keeps for itself.
//!
//! ```text
//! nix-cache-info
//! <hash>.narinfo  <hash>.ls
//! nar/<file hash>.nar.xz
//! log/  realisations/  build-trace-v2/  debuginfo/
//! .nix-stored/staging/<process>/   objects on their way in
//! .nix-stored/trash/               objects on their way out, put back after a crash
//! .nix-stored/quarantine/          objects that were false, under their own names
//! .nix-stored/pins/<name>          store paths that stay
//! .nix-stored/lock                 held by who collects garbage
//! ```

mod absent;
mod commit;
mod condition;
mod list;
mod notes;
mod quarantine;
pub mod read;
mod remove;
mod space;
mod staging;
mod upload;
mod uses;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::{
    Condition, Listed, Lock, Metadata, Object, Removed, Store, StoreError, Stored, Upload,
};
use crate::nix::CachePath;
use commit::{Committer, Object as NewObject};
use read::Reader;
use remove::Trash;
use space::Space;
use staging::Staging;
use upload::FsUpload;
use uses::Uses;

/// The folder in the cache's directory that is the daemon's own.
pub const OWN_FOLDER: &str = ".nix-stored";

/// A store in a directory.
#[derive(Debug)]
pub struct FsStore {
    reader: Reader,
    staging: Arc<Staging>,
    committer: Arc<Committer>,
    uses: Uses,
    trash: Arc<Trash>,
    space: Space,
    path: PathBuf,
}

/// Why a directory cannot be a store.
#[derive(Debug, Error)]
#[error("{doing} {path}")]
pub struct OpenError {
    doing: &'static str,
    path: String,
    source: io::Error,
}

impl FsStore {
    /// Opens the store in `root`, makes what is missing of it, and sweeps away what uploads left
    /// in the staging folders of processes that are gone.
    /// `reserve` bytes of the disk stay free.
    pub fn open(root: &Path, reserve: u64) -> Result<Self, OpenError> {
        let nar = root.join("nar");
        make_durably(&nar).map_err(failed("cannot make the directory", nar))?;
        let folder = staging_folder(root);
        let staging = Staging::open(&folder).map_err(failed("cannot prepare", folder))?;
        Self::new(root, reserve, staging)
    }

    /// Opens a store that is there, and changes nothing by that. It may be one that cannot be
    /// written to.
    pub fn open_existing(root: &Path, reserve: u64) -> Result<Self, OpenError> {
        Self::new(root, reserve, Staging::later(&staging_folder(root)))
    }

    fn new(path: &Path, reserve: u64, staging: Staging) -> Result<Self, OpenError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(failed("cannot open the directory", path.to_owned()))?;
        let root = Arc::new(fd);
        let trash = Trash::new(Arc::clone(&root), path.join(OWN_FOLDER).join("trash"));
        let staging = Arc::new(staging);
        Ok(Self {
            reader: Reader::new(Arc::clone(&root)),
            committer: Arc::new(Committer::start(Arc::clone(&staging), Arc::clone(&root))),
            uses: Uses::start(Arc::clone(&root)),
            trash: Arc::new(trash),
            space: Space::new(root, reserve),
            staging,
            path: path.to_owned(),
        })
    }
}

fn staging_folder(root: &Path) -> PathBuf {
    root.join(OWN_FOLDER).join("staging")
}

fn failed(doing: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError { doing, path: path.display().to_string(), source }
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
        let (reader, name) = (self.reader.clone(), key.to_owned());
        in_the_pool("reading", key.to_owned(), move || reader.open_file(&name)).boxed()
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
                .map_err(|_| io::Error::other("the committing thread is gone"))
                .and_then(|done| done)
                .map_err(|error| StoreError::new("storing", &key, error))
        }
        .boxed()
    }

    fn quarantine<'a>(
        &'a self,
        path: &'a CachePath,
        etag: &'a Bytes,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let (root, key, etag) = (self.path.clone(), path.key(), etag.clone());
        let folder = root.join(OWN_FOLDER).join("quarantine");
        let put_aside = {
            let key = key.clone();
            move || quarantine::put_aside(&root, &folder, &key, &etag)
        };
        in_the_pool("putting aside", key, put_aside).boxed()
    }

    fn note_used(&self, path: &CachePath) {
        self.uses.note(path);
    }

    fn mark_used<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.uses.mark(path).boxed()
    }

    fn remove<'a>(
        &'a self,
        path: &'a CachePath,
        unused_since: SystemTime,
    ) -> BoxFuture<'a, Result<Removed, StoreError>> {
        let (trash, key) = (Arc::clone(&self.trash), path.key());
        in_the_pool("removing", key.clone(), move || trash.remove(&key, unused_since)).boxed()
    }

    fn sync_removals(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let trash = Arc::clone(&self.trash);
        in_the_pool("syncing", ".".to_owned(), move || trash.sync()).boxed()
    }

    fn list(
        &self,
        wanted: fn(&CachePath) -> bool,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        list::list(self.reader.clone(), self.path.clone(), wanted)
    }

    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<String>, StoreError>> {
        let path = self.path.join(OWN_FOLDER).join(folder);
        in_the_pool("listing", folder.to_owned(), move || notes::names(&path)).boxed()
    }

    fn note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        let path = self.path.join(OWN_FOLDER).join(name);
        in_the_pool("reading", name.to_owned(), move || notes::read(&path)).boxed()
    }

    fn set_note<'a>(
        &'a self,
        name: &'a str,
        text: Option<Bytes>,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let path = self.path.join(OWN_FOLDER).join(name);
        in_the_pool("writing", name.to_owned(), move || notes::set(&path, text.as_deref())).boxed()
    }

    fn lock(&self) -> BoxFuture<'_, Result<Option<Lock>, StoreError>> {
        let (path, trash) = (self.path.join(OWN_FOLDER).join("lock"), Arc::clone(&self.trash));
        let lock = move || match notes::lock(&path)? {
            Some(lock) => trash.put_everything_back().map(|()| Some(lock)),
            None => Ok(None),
        };
        in_the_pool("locking", "lock".to_owned(), lock).boxed()
    }

    fn free_space(&self) -> Option<u64> {
        self.space.free().ok()
    }

    fn condition(&self) -> BoxFuture<'_, Condition> {
        let (space, path) = (self.space.clone(), self.path.clone());
        let look = move || Ok(condition::of(&space, &path));
        let looked = in_the_pool("looking at", condition::KEY.to_owned(), look);
        async move { looked.await.unwrap_or_else(Condition::Unusable) }.boxed()
    }

    fn begin(&self, path: &CachePath, size: Option<u64>) -> Result<Box<dyn Upload>, StoreError> {
        let (space, committer) = (self.space.clone(), Arc::clone(&self.committer));
        let upload = FsUpload::begin(&self.staging, committer, space, path.key(), size)?;
        Ok(Box::new(upload))
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

/// Like `create_dir_all`, and each directory that is made is synced into its parent.
fn make_durably(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_durably(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

/// Renames a file to a name that there is not yet: `EEXIST` if there is.
fn rename_new(
    from: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    to: impl AsFd,
    new_name: impl rustix::path::Arg + Copy,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(&from, name, &to, new_name, RenameFlags::NOREPLACE) {
        // A file system that cannot say so (NFS, for one) has links.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(&from, name, &to, new_name, AtFlags::empty())?;
            rustix::fs::unlinkat(&from, name, AtFlags::empty())
        }
        renamed => renamed,
    }
}

/// Syncs the directory that `fd` is.
fn sync_directory(fd: impl AsFd) -> io::Result<()> {
    rustix::fs::fsync(fd).map_err(io::Error::from)
}
