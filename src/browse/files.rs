//! The files of a store path, from its uploaded listing or from its NAR.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::file_collector::{FileCollector, Files, NoFiles};
use super::listing;
use super::workers::Workers;
use crate::cache::{Cache, UnpackError};
use crate::nix::cache_path::NarName;
use crate::nix::nar::NarChecker;
use crate::nix::{CachePath, Compression, NarInfo};
use crate::store::background;
use crate::unpack::{Allowance, decoder, more_memory, object_reader};

/// The maximum time for which a NAR is read.
const READ_TIME: Duration = Duration::from_secs(2);

/// The time for which a request waits for reading, which runs at the lowest priority.
const FILES_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest listing that is read. If a listing is larger, the files are read from the NAR.
const LISTING_LIMIT: u64 = 16 << 20;

const BUFFER: usize = 64 * 1024;

/// Lists the files of paths.
pub(super) struct FileLister<'a> {
    pub cache: &'a Cache,
    pub workers: &'a Workers,
    /// Limits the NARs that are read at a time.
    pub nar_readers: &'a Arc<Semaphore>,
}

impl FileLister<'_> {
    /// Lists the files of a path. This takes a few seconds at most.
    pub(super) async fn files_of(&self, info: &NarInfo) -> Result<Files, NoFiles> {
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
        read.await.unwrap_or(Err(NoFiles::Busy))
    }

    async fn files_in_nar(&self, info: &NarInfo) -> Result<Files, NoFiles> {
        let name = info.nar_name().ok_or(NoFiles::Absent)?;
        let nar = CachePath::Nar(name);
        let mut allowance = Allowance::USUAL;
        loop {
            // The semaphore is never closed.
            let turn = Arc::clone(self.nar_readers).acquire_owned().await.ok();
            let permit = self.cache.decoders().for_pages(allowance).await;
            let permit = permit.ok_or(NoFiles::Memory)?;
            let object = self.cache.store().get(&nar).await?.ok_or(NoFiles::Absent)?;
            let runtime = Handle::current();
            let read = background::run("files", move || {
                let (_turn, _permit) = (turn, permit);
                // The reader of an object in a bucket needs the runtime.
                let _runtime = runtime.enter();
                let input = object_reader(object.content, object.metadata.size);
                of_nar(name, input, Instant::now() + READ_TIME, allowance)
            });
            match read.await? {
                Err(NoFiles::Exceeded(more)) => allowance = more,
                read => return read,
            }
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
    let failed = |error| match more_memory(&error, allowance) {
        Some(more) => NoFiles::Exceeded(more),
        None => NoFiles::Read(error),
    };
    let decoder = decoder(compression, input, allowance);
    let mut decoder = decoder.map_err(|error| match error {
        Some(error) => failed(error),
        None => NoFiles::NoDecoder(compression),
    })?;
    let mut checker = NarChecker::with_events();
    let mut collector = FileCollector::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        checker.push(&buffer[..count])?;
        checker.take_events().into_iter().for_each(|seen| collector.take(seen));
        if Instant::now() >= deadline {
            collector.stop();
        }
        if collector.is_enough() {
            return Ok(collector.finish());
        }
    }
    checker.finish()?;
    Ok(collector.finish())
}

#[cfg(test)]
mod tests {
    use super::super::file_collector::{File, FileKind, MAX_FILES, MAX_TEXT};
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
        let mut collector = FileCollector::default();
        listing::read(text, &mut collector)?;
        Ok(collector.finish_listing())
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
        let files = read(&many(MAX_FILES, &short), later()).unwrap();
        assert!(!files.more && files.list.len() == MAX_FILES);
        let files = read(&many(MAX_FILES + 1, &short), later()).unwrap();
        assert!(files.more && files.list.len() == MAX_FILES);
        let files = read(&many(MAX_FILES, &|n| format!("{n:0255}")), later()).unwrap();
        assert!(files.more && files.list.len() == MAX_TEXT / 255);
        // More than is read at a time.
        let files = read(&many(MAX_FILES, &short), Instant::now()).unwrap();
        assert!(files.more && files.list.len() < MAX_FILES);
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
