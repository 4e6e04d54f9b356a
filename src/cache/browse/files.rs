//! The files of a store path, from its uploaded listing or from its NAR.

use std::io::{self, BufRead};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::runtime::Handle;

use super::{TooManyPages, listing};
use crate::cache::decode_budget::Allowance;
use crate::cache::{Cache, UnpackError, nar, unpack};
use crate::nix::cache_path::NarName;
use crate::nix::nar::{NarChecker, NarError, NarEvent};
use crate::nix::{CachePath, Compression, NarInfo};
use crate::store::{StoreError, background};

/// How many files are shown of a path, and how many bytes their names may have.
const MOST_FILES: usize = 2000;
const MOST_TEXT: usize = 256 * 1024;

/// For how long a NAR is read.
const LONGEST: Duration = Duration::from_secs(2);

/// The time for which a request waits for reading, which runs at the lowest priority.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest listing that is read. If a listing is larger, the files are read from the NAR.
const LISTING: u64 = 16 << 20;

const BUFFER: usize = 64 * 1024;

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

impl Cache {
    /// Which files a path has. This takes a few seconds at most.
    pub async fn files_of(&self, info: &NarInfo) -> Result<Files, NoFiles> {
        let listing = CachePath::Listing(info.store_path.hash());
        if let Some(object) = self.store.get(&listing).await?
            && object.metadata.size <= LISTING
        {
            let read = move || {
                let mut taking = Taking::default();
                listing::read(nar::reader(object.content, object.metadata.size), &mut taking)?;
                Ok(taking.files_of_listing())
            };
            return self.work_for_page(read).await?;
        }
        let read = tokio::time::timeout(PATIENCE, self.files_in_nar(info));
        read.await.unwrap_or(Err(NoFiles::Busy))
    }

    async fn files_in_nar(&self, info: &NarInfo) -> Result<Files, NoFiles> {
        let name = info.nar_name().ok_or(NoFiles::Absent)?;
        let mut allowance = Allowance::USUAL;
        loop {
            // The semaphore is never closed.
            let turn = self.browse.readers.clone().acquire_owned().await.ok();
            let permit = self.decoders.for_pages(allowance).await.ok_or(NoFiles::Memory)?;
            let object = self.store.get(&CachePath::Nar(name)).await?.ok_or(NoFiles::Absent)?;
            let runtime = Handle::current();
            let read = background::run("files", move || {
                let (_turn, _permit) = (turn, permit);
                // For the reader of what has to be fetched.
                let _runtime = runtime.enter();
                let input = nar::reader(object.content, object.metadata.size);
                of_nar(name, input, Instant::now() + LONGEST, allowance)
            });
            match read.await? {
                Err(NoFiles::Exceeded(more)) => allowance = more,
                read => return read,
            }
        }
    }
}

/// Takes what there is, as far as there is room for it.
#[derive(Default)]
pub(super) struct Taking {
    files: Files,
    /// The names of the directories that are open, and where each of them began among the files.
    open: Vec<(Vec<u8>, usize)>,
    /// The name of what comes next.
    name: Vec<u8>,
    text: usize,
}

impl Taking {
    /// Whether the limit of shown files is reached.
    pub(super) fn is_enough(&self) -> bool {
        self.files.more
    }

    /// The files of a listing in the order of a NAR, which is also the order in which Nix writes listings.
    fn files_of_listing(mut self) -> Files {
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
                if let Some((name, begun)) = self.open.pop()
                    && begun == self.files.list.len()
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
        if self.files.list.len() < MOST_FILES && self.text <= MOST_TEXT {
            self.files.list.push(File { name, kind });
        } else {
            self.files.more = true;
        }
    }
}

/// The files in a NAR, as far as they are found until the deadline.
fn of_nar(
    name: NarName,
    mut input: impl BufRead,
    deadline: Instant,
    allowance: Allowance,
) -> Result<Files, NoFiles> {
    let beginning = input.fill_buf()?;
    let unknown = || io::Error::other(UnpackError::Unknown);
    let compression = Compression::detect(name.extension, beginning).ok_or_else(unknown)?;
    let failed = |error| match unpack::more_memory(&error, allowance) {
        Some(more) => NoFiles::Exceeded(more),
        None => NoFiles::Read(error),
    };
    let decoder = unpack::decoder(compression, input, allowance);
    let mut decoder = decoder.map_err(|error| match error {
        Some(error) => failed(error),
        None => NoFiles::NoDecoder(compression),
    })?;
    let mut checker = NarChecker::with_events();
    let mut taking = Taking::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        checker.push(&buffer[..count])?;
        checker.take_events().into_iter().for_each(|seen| taking.take(seen));
        if Instant::now() >= deadline {
            taking.files.more = true;
        }
        if taking.files.more {
            return Ok(taking.files);
        }
    }
    checker.finish()?;
    Ok(taking.files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::cache_path::NarExtension;

    fn nar(words: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in words.split(' ').map(|word| if word == "-" { "" } else { word }) {
            bytes.extend_from_slice(&(word.len() as u64).to_le_bytes());
            bytes.extend_from_slice(word.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn read(bytes: &[u8], deadline: Instant) -> Result<Files, NoFiles> {
        let file_hash = crate::nix::Sha256Hash::of(bytes);
        let name = NarName { file_hash, extension: NarExtension::Bare };
        of_nar(name, bytes, deadline, Allowance::USUAL)
    }

    fn of_listing(text: &[u8]) -> Result<Files, io::Error> {
        let mut taking = Taking::default();
        listing::read(text, &mut taking)?;
        Ok(taking.files_of_listing())
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn tree() -> Files {
        let regular = |name: &str, size, executable| File {
            name: name.to_owned(),
            kind: FileKind::Regular { size, executable },
        };
        let list = vec![
            regular("bin/hello", 5, true),
            File { name: "empty".to_owned(), kind: FileKind::Empty },
            File { name: "lib".to_owned(), kind: FileKind::Symlink("bin".to_owned()) },
            regular("share/doc/x", 0, false),
        ];
        Files { list, more: false }
    }

    #[test]
    fn a_nar_and_a_listing_tell_the_same() {
        let bytes = nar("nix-archive-1 ( type directory \
            entry ( name bin node ( type directory entry ( name hello node ( type regular executable - contents world ) ) ) ) \
            entry ( name empty node ( type directory ) ) \
            entry ( name lib node ( type symlink target bin ) ) \
            entry ( name share node ( type directory entry ( name doc node ( type directory entry ( name x node ( type regular ) ) ) ) ) ) )");
        assert_eq!(read(&bytes, later()).unwrap(), tree());
        let listing = r#"{"version":1,"root":{"type":"directory","entries":{
            "share":{"type":"directory","entries":{"doc":{"type":"directory","entries":{"x":{"type":"regular"}}}}},
            "empty":{"type":"directory","entries":{}},
            "bin":{"type":"directory","entries":{"hello":{"type":"regular","size":5,"executable":true,"narOffset":400}}},
            "lib":{"type":"symlink","target":"bin"}}}}"#;
        assert_eq!(of_listing(listing.as_bytes()).unwrap(), tree());
    }

    #[test]
    fn a_path_can_be_one_file() {
        let files = read(&nar("nix-archive-1 ( type regular contents hello )"), later()).unwrap();
        let kind = FileKind::Regular { size: 5, executable: false };
        assert_eq!(files.list, [File { name: String::new(), kind }]);
    }

    #[test]
    fn there_is_an_end_to_files_names_and_time() {
        let many = |count: usize, name: &dyn Fn(usize) -> String| {
            let entry = |n| format!("entry ( name {} node ( type regular contents x ) )", name(n));
            let entries: Vec<String> = (0..count).map(entry).collect();
            nar(&format!("nix-archive-1 ( type directory {} )", entries.join(" ")))
        };
        let short = |n: usize| format!("{n:06}");
        let files = read(&many(MOST_FILES, &short), later()).unwrap();
        assert!(!files.more && files.list.len() == MOST_FILES);
        let files = read(&many(MOST_FILES + 1, &short), later()).unwrap();
        assert!(files.more && files.list.len() == MOST_FILES);
        let files = read(&many(MOST_FILES, &|n| format!("{n:0255}")), later()).unwrap();
        assert!(files.more && files.list.len() == MOST_TEXT / 255);
        // More than is read at a time.
        let files = read(&many(MOST_FILES, &short), Instant::now()).unwrap();
        assert!(files.more && files.list.len() < MOST_FILES);
    }

    #[test]
    fn what_is_none_is_told() {
        assert!(matches!(read(b"nonsense", later()), Err(NoFiles::Read(_))));
        let mut cut = nar("nix-archive-1 ( type regular contents hello )");
        cut.pop();
        assert!(matches!(read(&cut, later()), Err(NoFiles::Nar(_))));
        assert!(of_listing(b"{}").is_err());
        let deep =
            r#"{"root":"#.to_owned() + &r#"{"type":"directory","entries":{"a":"#.repeat(5000);
        assert!(of_listing(deep.as_bytes()).is_err());
    }
}
