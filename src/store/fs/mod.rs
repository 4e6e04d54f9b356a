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

pub mod read;
mod staging;
mod upload;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use super::{Metadata, Object, Store, StoreError, Upload};
use crate::nix::CachePath;
use read::Reader;
use staging::Staging;
use upload::FsUpload;

/// The folder in the cache's directory that is the daemon's own.
pub const OWN_FOLDER: &str = ".nix-stored";

/// A store in a directory.
#[derive(Debug)]
pub struct FsStore {
    reader: Reader,
    staging: Arc<Staging>,
    root: Arc<OwnedFd>,
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
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        let failed = |doing, path: PathBuf| {
            move |source: io::Error| OpenError { doing, path: path.display().to_string(), source }
        };
        let nar = root.join("nar");
        std::fs::create_dir_all(&nar).map_err(failed("cannot make the directory", nar))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(failed("cannot open the directory", root.to_owned()))?;
        let folder = root.join(OWN_FOLDER).join("staging");
        let staging = Staging::open(&folder).map_err(failed("cannot prepare", folder))?;
        let root = Arc::new(fd);
        Ok(Self { reader: Reader::new(Arc::clone(&root)), staging: Arc::new(staging), root })
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

    fn begin(&self, path: &CachePath, size: Option<u64>) -> Result<Box<dyn Upload>, StoreError> {
        let upload = FsUpload::begin(&self.staging, &self.root, path.key(), size)?;
        Ok(Box::new(upload))
    }
}

/// Syncs the directory that `fd` is.
fn sync_directory(fd: impl AsFd) -> io::Result<()> {
    rustix::fs::fsync(fd).map_err(io::Error::from)
}
