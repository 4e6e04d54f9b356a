//! The flat directory: exactly the files of Nix's own `file://` cache, plus `.nix-stored/` for
//! what the daemon keeps for itself.
//!
//! ```text
//! nix-cache-info
//! <hash>.narinfo  <hash>.ls
//! nar/<file hash>.nar.xz
//! log/  realisations/  build-trace-v2/  debuginfo/
//! .nix-stored/staging/<process>/   objects on their way in
//! ```

mod absent;
mod commit;
pub mod read;
mod space;
mod staging;
mod upload;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use super::{Metadata, Object, Store, StoreError, Stored, Upload};
use crate::nix::CachePath;
use commit::{Committer, Object as NewObject};
use read::Reader;
use space::Space;
use staging::Staging;
use upload::FsUpload;

/// The folder in the cache's directory that is the daemon's own.
pub const OWN_FOLDER: &str = ".nix-stored";

/// A store in a directory.
#[derive(Debug)]
pub struct FsStore {
    reader: Reader,
    staging: Arc<Staging>,
    committer: Arc<Committer>,
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
        let failed = |doing, path: PathBuf| {
            move |source: io::Error| OpenError { doing, path: path.display().to_string(), source }
        };
        let nar = root.join("nar");
        make_durably(&nar).map_err(failed("cannot make the directory", nar))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(failed("cannot open the directory", root.to_owned()))?;
        let folder = root.join(OWN_FOLDER).join("staging");
        let staging = Staging::open(&folder).map_err(failed("cannot prepare", folder))?;
        let path = root.to_owned();
        let root = Arc::new(fd);
        let staging = Arc::new(staging);
        Ok(Self {
            reader: Reader::new(Arc::clone(&root)),
            committer: Arc::new(Committer::start(Arc::clone(&staging), Arc::clone(&root))),
            space: Space::new(root, reserve),
            staging,
            path,
        })
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

    fn quarantine<'a>(&'a self, path: &'a CachePath) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let (root, key) = (self.path.clone(), path.key());
            let moved = tokio::task::spawn_blocking(move || {
                let folder = root.join(OWN_FOLDER).join("quarantine");
                make_durably(&folder)?;
                let (from, name) = key.rsplit_once('/').unwrap_or((".", &key));
                std::fs::rename(root.join(&key), folder.join(name))?;
                // Or a power cut could bring it back.
                File::open(root.join(from))?.sync_all()
            });
            let moved = moved.await.map_err(io::Error::other).and_then(|moved| moved);
            moved.map_err(|error| StoreError::new("putting aside", &path.key(), error))
        }
        .boxed()
    }

    fn begin(&self, path: &CachePath, size: Option<u64>) -> Result<Box<dyn Upload>, StoreError> {
        let (space, committer) = (self.space.clone(), Arc::clone(&self.committer));
        let upload = FsUpload::begin(&self.staging, committer, space, path.key(), size)?;
        Ok(Box::new(upload))
    }
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

/// Syncs the directory that `fd` is.
fn sync_directory(fd: impl AsFd) -> io::Result<()> {
    rustix::fs::fsync(fd).map_err(io::Error::from)
}
