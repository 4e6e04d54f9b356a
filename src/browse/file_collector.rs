//! Collects the files of a store path, up to a limit.

use std::io;

use thiserror::Error;

use super::workers::TooManyPages;
use crate::nix::Compression;
use crate::nix::nar::{NarError, NarEvent};
use crate::store::StoreError;
use crate::unpack::Allowance;

/// How many files are shown of a path, and how many bytes their names may have.
pub(super) const MAX_FILES: usize = 2000;
pub(super) const MAX_TEXT: usize = 256 * 1024;

/// The files of a path, or the first ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// In the order in which they stand in the NAR.
    pub list: Vec<File>,
    /// Whether there are more, or may be.
    pub more: bool,
}

/// A file of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name, with the directories that it is in; empty where the path itself is no directory.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular {
        /// Its length in bytes.
        size: u64,
        /// Whether it can be run.
        executable: bool,
    },
    /// A symlink to this.
    Symlink(String),
    /// A directory without anything in it.
    Empty,
}

/// The reason why the files of a path are unknown.
#[derive(Debug, Error)]
pub enum NoFiles {
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

impl From<TooManyPages> for NoFiles {
    fn from(_: TooManyPages) -> Self {
        Self::Busy
    }
}

/// Collects files up to the limit.
#[derive(Default)]
pub(super) struct FileCollector {
    files: Files,
    /// The names of the directories that are open, and where each of them began among the files.
    open: Vec<(Vec<u8>, usize)>,
    /// The name of what comes next.
    name: Vec<u8>,
    text: usize,
}

impl FileCollector {
    /// Marks the list as incomplete.
    pub(super) fn stop(&mut self) {
        self.files.more = true;
    }

    /// Returns the files so far.
    pub(super) fn finish(self) -> Files {
        self.files
    }

    /// Whether the list is incomplete: nothing more is added.
    pub(super) fn is_enough(&self) -> bool {
        self.files.more
    }

    /// The files of a listing in the order of a NAR, which is also the order in which Nix writes listings.
    pub(super) fn finish_listing(mut self) -> Files {
        self.files.list.sort_by(|one, other| one.name.split('/').cmp(other.name.split('/')));
        self.files
    }

    pub(super) fn take(&mut self, seen: NarEvent) {
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
                    self.file(FileKind::Empty);
                }
            }
            NarEvent::File { size, executable } => {
                self.file(FileKind::Regular { size, executable });
            }
            NarEvent::Symlink(target) => {
                self.file(FileKind::Symlink(String::from_utf8_lossy(&target).into_owned()));
            }
        }
    }

    fn file(&mut self, kind: FileKind) {
        // The first directory is the path itself.
        let folders = self.open.iter().skip(1).map(|(name, _)| name.as_slice());
        let parts: Vec<&[u8]> = folders.chain([self.name.as_slice()]).collect();
        let name = String::from_utf8_lossy(&parts.join(&b'/')).into_owned();
        self.text += name.len();
        if let FileKind::Symlink(target) = &kind {
            self.text += target.len();
        }
        if self.files.list.len() < MAX_FILES && self.text <= MAX_TEXT {
            self.files.list.push(File { name, kind });
        } else {
            self.files.more = true;
        }
    }
}
