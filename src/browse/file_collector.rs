//! Collects the files of a store path, up to a limit.

use std::io;

use thiserror::Error;

use super::workers::TooManyPages;
use crate::nix::Compression;
use crate::nix::nar::{NarError, NarEvent};
use crate::store::StoreError;
use crate::unpack::Allowance;

/// The maximum number of listed files. A page with more of them is slow to render.
pub(super) const MAX_FILES: usize = 2000;

/// The maximum number of bytes in the names and symlink targets of listed files.
pub(super) const MAX_NAME_BYTES: usize = 256 * 1024;

/// The files of a path, or the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileList {
    /// The files, in the order of the NAR.
    pub list: Vec<ListedFile>,
    /// Whether the list may be incomplete.
    pub is_truncated: bool,
}

/// A file of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// The name relative to the store path. It is empty if the store path itself is a file.
    pub name: String,
    /// The type of the file.
    pub kind: FileKind,
}

/// The type of a file, with its properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular {
        /// The size in bytes.
        size: u64,
        /// Whether the file is executable.
        executable: bool,
    },
    /// A symlink to this target.
    Symlink(String),
    /// An empty directory. Other directories are only listed with their files.
    EmptyDirectory,
}

/// The reason why the files of a path are unknown.
#[derive(Debug, Error)]
pub enum ListFilesError {
    /// The NAR is missing.
    #[error("the NAR is not in this cache")]
    Absent,
    /// There is no decoder for the NAR.
    #[error("there is no decoder for {0}")]
    NoDecoder(Compression),
    /// Unpacking needs more memory than allowed; it can be retried with this allowance.
    #[error("unpacking the NAR needs more memory than pages may use")]
    Exceeded(Allowance),
    /// Unpacking needs more memory than pages may use.
    #[error("unpacking the NAR needs more memory than pages may use")]
    Memory,
    /// Too many NARs are being read, or reading takes too long.
    #[error("the cache is busy; try again in a moment")]
    Busy,
    /// The NAR cannot be read.
    #[error("cannot read the NAR: {0}")]
    Read(#[from] io::Error),
    /// The file is not a NAR.
    #[error("{0}")]
    Nar(#[from] NarError),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl From<TooManyPages> for ListFilesError {
    fn from(_: TooManyPages) -> Self {
        Self::Busy
    }
}

/// Collects files up to the limit.
#[derive(Default)]
pub(super) struct FileCollector {
    files: FileList,
    /// The open directories: for each its name, and the number of files before it.
    open: Vec<(Vec<u8>, usize)>,
    /// The name of the next file or directory.
    name: Vec<u8>,
    /// The number of bytes in all names and symlink targets so far.
    name_bytes: usize,
}

impl FileCollector {
    /// Marks the list as incomplete.
    pub(super) fn stop(&mut self) {
        self.files.is_truncated = true;
    }

    /// Returns the files so far.
    pub(super) fn finish(self) -> FileList {
        self.files
    }

    /// Whether a limit was reached, so that the rest need not be read.
    pub(super) fn is_full(&self) -> bool {
        self.files.is_truncated
    }

    /// Returns the files of a listing, sorted in the order of a NAR.
    pub(super) fn finish_listing(mut self) -> FileList {
        self.files.list.sort_by(|one, other| one.name.split('/').cmp(other.name.split('/')));
        self.files
    }

    /// Adds the next item of a NAR or listing.
    pub(super) fn add(&mut self, seen: NarEvent) {
        match seen {
            NarEvent::Name(name) => self.name = name,
            NarEvent::Directory => {
                self.open.push((std::mem::take(&mut self.name), self.files.list.len()));
            }
            NarEvent::DirectoryEnd => {
                if let Some((name, started)) = self.open.pop()
                    && started == self.files.list.len()
                {
                    self.name = name;
                    self.add_file(FileKind::EmptyDirectory);
                }
            }
            NarEvent::File { size, executable } => {
                self.add_file(FileKind::Regular { size, executable });
            }
            NarEvent::Symlink(target) => {
                self.add_file(FileKind::Symlink(String::from_utf8_lossy(&target).into_owned()));
            }
        }
    }

    fn add_file(&mut self, kind: FileKind) {
        // The first directory is the store path itself.
        let directories = self.open.iter().skip(1).map(|(name, _)| name.as_slice());
        let parts: Vec<&[u8]> = directories.chain([self.name.as_slice()]).collect();
        let name = String::from_utf8_lossy(&parts.join(&b'/')).into_owned();
        self.name_bytes += name.len();
        if let FileKind::Symlink(target) = &kind {
            self.name_bytes += target.len();
        }
        if self.files.list.len() < MAX_FILES && self.name_bytes <= MAX_NAME_BYTES {
            self.files.list.push(ListedFile { name, kind });
        } else {
            self.files.is_truncated = true;
        }
    }
}
