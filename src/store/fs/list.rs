//! Going through everything, without being in anybody's way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;

use super::OWN_FOLDER;
use super::read::Reader;
use crate::nix::CachePath;
use crate::store::{Listed, ListedObject, StoreError, background};

/// Objects are handed over in batches of this size, and of so many bytes of content at most, or
/// one object more.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1024 * 1024;

/// How many batches may wait.
const BATCHES: usize = 4;

type Batch = Vec<Result<Listed, StoreError>>;

/// Everything below `root`.
pub(super) fn list(
    reader: Reader,
    root: PathBuf,
    wanted: fn(&CachePath) -> bool,
) -> BoxStream<'static, Result<Listed, StoreError>> {
    let (sender, receiver) = mpsc::channel(BATCHES);
    let walk = move || {
        let mut walker = Walker { reader, wanted, batch: Vec::new(), bytes: 0, sender };
        let walked = walker.walk(&root, "");
        if let Err(Stop::Error(error)) = walked {
            walker.batch.push(Err(error));
        }
        walker.hand_over().ok();
    };
    background::spawn("list", walk).map_or_else(stopped, |_| batches(receiver))
}

fn stopped(error: io::Error) -> BoxStream<'static, Result<Listed, StoreError>> {
    let error = StoreError::new("listing", ".", error);
    Box::pin(stream::iter([Err(error)]))
}

fn batches(mut receiver: mpsc::Receiver<Batch>) -> BoxStream<'static, Result<Listed, StoreError>> {
    stream::poll_fn(move |cx| receiver.poll_recv(cx)).flat_map(stream::iter).boxed()
}

/// Why a walk ends early.
enum Stop {
    /// Nobody wants to know more.
    Unwanted,
    /// A folder cannot be read.
    Error(StoreError),
}

struct Walker {
    reader: Reader,
    wanted: fn(&CachePath) -> bool,
    batch: Batch,
    /// The bytes of content in the batch.
    bytes: usize,
    sender: mpsc::Sender<Batch>,
}

impl Walker {
    /// Goes through a folder; `below` is its key, with a slash behind it.
    fn walk(&mut self, folder: &Path, below: &str) -> Result<(), Stop> {
        let failed = |error| Stop::Error(StoreError::new("listing", below, error));
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let key = format!("{below}{}", entry.file_name().to_string_lossy());
            match key.parse::<CachePath>() {
                // What has another key is not found under this name.
                Ok(path) if path.key() == key => self.found(path, &key)?,
                _ if key == OWN_FOLDER => {}
                // No others: `lost+found` cannot be read by everyone.
                _ if CachePath::is_folder(&key) && entry.path().is_dir() => {
                    self.walk(&entry.path(), &format!("{key}/"))?;
                }
                _ => self.push(Listed::Foreign(key))?,
            }
        }
        Ok(())
    }

    fn found(&mut self, path: CachePath, key: &str) -> Result<(), Stop> {
        if path == CachePath::CacheInfo {
            return Ok(());
        }
        let wanted = (self.wanted)(&path);
        match self.reader.inspect(key, wanted) {
            Ok(Some((metadata, None))) if matches!(path, CachePath::NarInfo(_)) && wanted => {
                let error = StoreError::narinfo_too_large(key, metadata.size);
                self.push(Listed::Unreadable(path, error))
            }
            Ok(Some((metadata, content))) => {
                self.bytes += content.as_ref().map_or(0, Bytes::len);
                self.push(Listed::Object(ListedObject { path, metadata, content }))
            }
            // It has gone in the meantime.
            Ok(None) => Ok(()),
            Err(error) => self.push(Listed::Unreadable(path, error)),
        }
    }

    fn push(&mut self, listed: Listed) -> Result<(), Stop> {
        self.batch.push(Ok(listed));
        let full = self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES;
        if full { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<(), Stop> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        self.sender.blocking_send(batch).map_err(|_| Stop::Unwanted)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::*;

    const HASH: &str = "8ha1dhmx807czjczmwy078s4r9s254il";

    fn put(dir: &Path, key: &str) {
        let file = dir.join(key);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, key).unwrap();
    }

    fn narinfos(path: &CachePath) -> bool {
        matches!(path, CachePath::NarInfo(_))
    }

    fn listed(dir: &Path) -> BoxStream<'static, Result<Listed, StoreError>> {
        let fd = Arc::new(OwnedFd::from(fs::File::open(dir).unwrap()));
        list(Reader::new(fd), dir.to_owned(), narinfos)
    }

    #[tokio::test]
    async fn every_object_is_found_and_nothing_of_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let nar = |number: usize| format!("nar/{number:0>52}.nar.xz");
        let log = format!("log/{HASH}-hello.drv");
        let trace = format!("build-trace-v2/{HASH}-hello.drv/out.doi");
        // Not a whole number of batches.
        let mut objects: Vec<String> = (0..2 * BATCH + 7).map(nar).collect();
        objects.extend([format!("{HASH}.narinfo"), format!("{HASH}.ls"), log, trace]);
        let foreign = ["README", "nar/README", "lost+found", "nar/x.nar"];
        let own = ["nix-cache-info", ".nix-stored/lock", ".nix-stored/trash/nar/x"];
        for key in objects.iter().map(String::as_str).chain(foreign).chain(own) {
            put(dir.path(), key);
        }
        fs::create_dir(dir.path().join(format!("{}.narinfo", HASH.replace('8', "9")))).unwrap();

        let mut found = BTreeMap::new();
        let mut strangers = Vec::new();
        let mut all = listed(dir.path());
        while let Some(one) = all.next().await {
            match one.unwrap() {
                Listed::Object(object) => {
                    let key = object.path.key();
                    assert_eq!(object.metadata.size, key.len() as u64);
                    found.insert(key, object.content);
                }
                Listed::Foreign(name) => strangers.push(name),
                Listed::Unreadable(path, error) => panic!("{path}: {error}"),
            }
        }
        objects.sort();
        strangers.sort();
        assert!(found.keys().eq(&objects));
        assert_eq!(strangers, ["README", "lost+found", "nar/README", "nar/x.nar"]);
        for (key, content) in found {
            let wanted = key.ends_with(".narinfo").then(|| key.clone().into_bytes());
            assert_eq!(content.map(Vec::from), wanted, "{key}");
        }
    }

    #[tokio::test]
    async fn nothing_is_in_a_cache_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = listed(dir.path());
        fs::remove_dir(dir.path()).unwrap();
        // Whether it was opened before or after.
        assert!(!matches!(all.next().await, Some(Ok(_))));
        assert!(all.next().await.is_none());
    }

    #[tokio::test]
    async fn it_ends_when_nobody_wants_to_know_more() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..BATCH * (BATCHES + 4) {
            put(dir.path(), &format!("nar/{number:0>52}.nar"));
        }
        let fd = Arc::new(OwnedFd::from(fs::File::open(dir.path()).unwrap()));
        let mut all = list(Reader::new(Arc::clone(&fd)), dir.path().to_owned(), narinfos);
        assert!(all.next().await.is_some());
        assert!(Arc::strong_count(&fd) > 1);
        drop(all);
        // The thread has it until it ends.
        while Arc::strong_count(&fd) > 1 {
            std::thread::yield_now();
        }
    }
}
