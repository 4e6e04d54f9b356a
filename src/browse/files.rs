//! The files of a store path, from its uploaded listing or from its NAR.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::file_collector::{FileCollector, FileList, ListFilesError};
use super::listing;
use super::workers::Workers;
use crate::cache::{Cache, UnpackError};
use crate::nix::cache_path::NarName;
use crate::nix::nar::NarChecker;
use crate::nix::{CachePath, Compression, NarInfo};
use crate::store::background;
use crate::unpack::{Allowance, decoder, more_memory, object_reader};

/// The maximum time for which a NAR is read to list its files. Then the list is incomplete.
const NAR_READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The time for which a request waits for reading, which runs at the lowest priority.
const FILES_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum size of a listing in bytes. If a listing is larger, the files are read from the NAR.
const LISTING_LIMIT: u64 = 16 << 20;

/// The size of the buffer for the unpacked NAR in bytes.
const READ_BUFFER: usize = 64 * 1024;

/// Lists the files of paths.
pub(super) struct FileLister<'a> {
    pub cache: &'a Cache,
    pub workers: &'a Workers,
    /// Limits the NARs that are read at a time.
    pub nar_readers: &'a Arc<Semaphore>,
}

impl FileLister<'_> {
    /// Lists the files of a path. This takes a few seconds at most.
    pub(super) async fn files_of(&self, info: &NarInfo) -> Result<FileList, ListFilesError> {
        let listing = CachePath::Listing(info.store_path.hash());
        if let Some(object) = self.cache.store().get(&listing).await?
            && object.metadata.size <= LISTING_LIMIT
        {
            let read = move || {
                let mut collector = FileCollector::default();
                listing::read(object_reader(object.content, object.metadata.size), &mut collector)?;
                Ok(collector.finish_listing())
            };
            return self.workers.run(read).await?;
        }
        let read = tokio::time::timeout(FILES_TIMEOUT, self.files_in_nar(info));
        read.await.unwrap_or(Err(ListFilesError::Busy))
    }

    async fn files_in_nar(&self, info: &NarInfo) -> Result<FileList, ListFilesError> {
        let name = info.nar_name().ok_or(ListFilesError::Absent)?;
        let nar = CachePath::Nar(name);
        let mut allowance = Allowance::USUAL;
        loop {
            // The semaphore is never closed.
            let reader_permit = Arc::clone(self.nar_readers).acquire_owned().await.ok();
            let decoder_permit = self.cache.decoders().for_pages(allowance).await;
            let decoder_permit = decoder_permit.ok_or(ListFilesError::Memory)?;
            let object = self.cache.store().get(&nar).await?.ok_or(ListFilesError::Absent)?;
            let runtime = Handle::current();
            let read = background::run("files", move || {
                let _permits = (reader_permit, decoder_permit);
                // The reader of an object in a bucket needs the runtime.
                let _runtime = runtime.enter();
                let input = object_reader(object.content, object.metadata.size);
                read_nar(name, input, Instant::now() + NAR_READ_TIMEOUT, allowance)
            });
            match read.await? {
                Err(ListFilesError::Exceeded(more)) => allowance = more,
                read => return read,
            }
        }
    }
}

/// Lists the files in a NAR. The list is incomplete if the deadline or a limit is reached.
fn read_nar(
    name: NarName,
    mut input: impl BufRead,
    deadline: Instant,
    allowance: Allowance,
) -> Result<FileList, ListFilesError> {
    let beginning = input.fill_buf()?;
    let unknown = || io::Error::other(UnpackError::Unknown);
    let compression = Compression::detect(name.extension, beginning).ok_or_else(unknown)?;
    let failed = |error| match more_memory(&error, allowance) {
        Some(more) => ListFilesError::Exceeded(more),
        None => ListFilesError::Read(error),
    };
    let decoder = decoder(compression, input, allowance);
    let mut decoder = decoder.map_err(|error| match error {
        Some(error) => failed(error),
        None => ListFilesError::NoDecoder(compression),
    })?;
    let mut checker = NarChecker::with_events();
    let mut collector = FileCollector::default();
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        checker.push(&buffer[..count])?;
        checker.take_events().into_iter().for_each(|seen| collector.add(seen));
        if Instant::now() >= deadline {
            collector.stop();
        }
        if collector.is_full() {
            return Ok(collector.finish());
        }
    }
    checker.finish()?;
    Ok(collector.finish())
}

#[cfg(test)]
mod tests {
    use super::super::file_collector::{FileKind, ListedFile, MAX_FILES, MAX_NAME_BYTES};
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

    fn read(bytes: &[u8], deadline: Instant) -> Result<FileList, ListFilesError> {
        let file_hash = crate::nix::Sha256Hash::of(bytes);
        let name = NarName { file_hash, extension: NarExtension::Bare };
        read_nar(name, bytes, deadline, Allowance::USUAL)
    }

    fn read_listing(text: &[u8]) -> Result<FileList, io::Error> {
        let mut collector = FileCollector::default();
        listing::read(text, &mut collector)?;
        Ok(collector.finish_listing())
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn tree() -> FileList {
        let regular = |name: &str, size, executable| ListedFile {
            name: name.to_owned(),
            kind: FileKind::Regular { size, executable },
        };
        let list = vec![
            regular("bin/hello", 5, true),
            ListedFile { name: "empty".to_owned(), kind: FileKind::EmptyDirectory },
            ListedFile { name: "lib".to_owned(), kind: FileKind::Symlink("bin".to_owned()) },
            regular("share/doc/x", 0, false),
        ];
        FileList { list, is_truncated: false }
    }

    #[test]
    fn a_nar_and_its_listing_have_the_same_files() {
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
        assert_eq!(read_listing(listing.as_bytes()).unwrap(), tree());
    }

    #[test]
    fn a_store_path_can_be_a_single_file() {
        let files = read(&nar("nix-archive-1 ( type regular contents hello )"), later()).unwrap();
        let kind = FileKind::Regular { size: 5, executable: false };
        assert_eq!(files.list, [ListedFile { name: String::new(), kind }]);
    }

    #[test]
    fn the_number_of_files_their_names_and_the_time_are_limited() {
        let many = |count: usize, name: &dyn Fn(usize) -> String| {
            let entry = |n| format!("entry ( name {} node ( type regular contents x ) )", name(n));
            let entries: Vec<String> = (0..count).map(entry).collect();
            nar(&format!("nix-archive-1 ( type directory {} )", entries.join(" ")))
        };
        let short = |n: usize| format!("{n:06}");
        let files = read(&many(MAX_FILES, &short), later()).unwrap();
        assert!(!files.is_truncated && files.list.len() == MAX_FILES);
        let files = read(&many(MAX_FILES + 1, &short), later()).unwrap();
        assert!(files.is_truncated && files.list.len() == MAX_FILES);
        let files = read(&many(MAX_FILES, &|n| format!("{n:0255}")), later()).unwrap();
        assert!(files.is_truncated && files.list.len() == MAX_NAME_BYTES / 255);
        // The NAR is larger than the buffer, so the deadline is checked before its end.
        let files = read(&many(MAX_FILES, &short), Instant::now()).unwrap();
        assert!(files.is_truncated && files.list.len() < MAX_FILES);
    }

    #[test]
    fn an_invalid_nar_or_listing_is_an_error() {
        assert!(matches!(read(b"nonsense", later()), Err(ListFilesError::Read(_))));
        let mut cut = nar("nix-archive-1 ( type regular contents hello )");
        cut.pop();
        assert!(matches!(read(&cut, later()), Err(ListFilesError::Nar(_))));
        assert!(read_listing(b"{}").is_err());
        let deep =
            r#"{"root":"#.to_owned() + &r#"{"type":"directory","entries":{"a":"#.repeat(5000);
        assert!(read_listing(deep.as_bytes()).is_err());
    }
}
