//! An object on its way into the directory: stage, sync, rename, sync the directory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::staging::Staging;
use super::sync_directory;
use crate::store::{StoreError, Upload};

/// A staged file that has no name in the cache yet.
pub(super) struct FsUpload {
    staging: Arc<Staging>,
    root: Arc<OwnedFd>,
    key: String,
    file: File,
    /// Its name in the staging folder, until it is published.
    staged: Option<String>,
}

impl FsUpload {
    pub(super) fn begin(
        staging: &Arc<Staging>,
        root: &Arc<OwnedFd>,
        key: String,
        _size: Option<u64>,
    ) -> Result<Self, StoreError> {
        let (file, name) =
            staging.create().map_err(|error| StoreError::new("staging", &key, error))?;
        Ok(Self {
            staging: Arc::clone(staging),
            root: Arc::clone(root),
            key,
            file: File::from(file),
            staged: Some(name),
        })
    }

    /// The one way into the cache: what is renamed has been synced, and the directory is synced
    /// before anybody hears of it.
    fn publish(&mut self, name: &str) -> io::Result<()> {
        self.file.sync_all()?;
        let (folder, base) = self.key.rsplit_once('/').unwrap_or((".", &self.key));
        let directory = open_or_make(&self.root, folder)?;
        rustix::fs::renameat(self.staging.folder(), name, &directory, base)?;
        sync_directory(&directory)
    }
}

impl Upload for FsUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|error| StoreError::new("writing", &self.key, error))
    }

    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        let Some(name) = self.staged.take() else {
            return Ok(());
        };
        self.publish(&name).map_err(|error| {
            // Renamed or not, the staged name must not stay.
            let _ = self.staging.remove(&name);
            StoreError::new("publishing", &self.key, error)
        })
    }
}

impl Drop for FsUpload {
    fn drop(&mut self) {
        if let Some(name) = self.staged.take() {
            // Nobody is left to tell; the sweep at the next start removes what stays.
            let _ = self.staging.remove(&name);
        }
    }
}

/// Opens the directory `folder` below `root`. One that is missing is made, and synced into its
/// parent, or a power cut could take it with everything in it.
fn open_or_make(root: &OwnedFd, folder: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(root, folder, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            let (parent, base) = folder.rsplit_once('/').unwrap_or((".", folder));
            let parent = open_or_make(root, parent)?;
            match rustix::fs::mkdirat(&parent, base, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => sync_directory(&parent)?,
                Err(error) => return Err(error.into()),
            }
            Ok(open()?)
        }
        opened => Ok(opened?),
    }
}
