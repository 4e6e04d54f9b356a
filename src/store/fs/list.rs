//! Lists all objects at low priority.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use rustix::fs::{AtFlags, FileType, StatVfsMountFlags};
use rustix::process::{Uid, geteuid};
use tokio::sync::mpsc;
use tracing::warn;

use super::folder::{self, OWN_FOLDER};
use super::open_root::OpenRoot;
use super::read::{Inspection, inspect};
use super::root::{Role, Root};
use crate::nix::CachePath;
use crate::store::{Listed, ListedObject, StoreError, background};

/// The maximum number of objects in a batch, and the maximum number of bytes of their contents,
/// apart from the last object.
const LIST_BATCH_LIMIT: usize = 256;
const LIST_BATCH_BYTES: usize = 1024 * 1024;

/// The number of batches that may wait for the receiver.
const QUEUED_BATCHES: usize = 4;

type Batch = Vec<Result<Listed, StoreError>>;

/// Lists all objects below `root`.
pub(super) fn list(
    root: Arc<Root>,
    wanted: fn(&CachePath) -> bool,
) -> BoxStream<'static, Result<Listed, StoreError>> {
    let (sender, receiver) = mpsc::channel(QUEUED_BATCHES);
    let walk = move || {
        let open = match root.check_path() {
            Ok(open) => open,
            Err(unusable) => {
                // The receiver may have been dropped.
                let _ = sender.blocking_send(vec![Err(unusable.into())]);
                return;
            }
        };
        let other_owners = OtherOwners::new(&root, &open);
        let mut walker =
            Walker { root: &open, wanted, batch: Vec::new(), bytes: 0, sender, other_owners };
        let walked = walker.walk(".", "");
        walker.other_owners.log(&root);
        // Names from a replaced directory are not the contents of the cache.
        let walked = walked.and_then(|()| {
            root.still_leads_to(&open).map_err(|unusable| Stop::Error(unusable.into()))
        });
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

/// The reason why a walk ends early.
enum Stop {
    /// The receiver was dropped.
    Unwanted,
    /// A folder cannot be read.
    Error(StoreError),
}

struct Walker<'a> {
    root: &'a OpenRoot,
    wanted: fn(&CachePath) -> bool,
    batch: Batch,
    /// The bytes of content in the batch.
    bytes: usize,
    sender: mpsc::Sender<Batch>,
    other_owners: OtherOwners,
}

impl Walker<'_> {
    /// Walks the directory with the key `folder`; `below` is the same with a trailing slash.
    fn walk(&mut self, folder: &str, below: &str) -> Result<(), Stop> {
        let failed = |error| Stop::Error(StoreError::new("listing", below, error));
        let fd = self.root.folder(folder).map_err(failed)?;
        let mut stop = None;
        let walked = folder::each(fd, |name, kind| {
            let key = format!("{below}{}", name.to_string_lossy());
            // `each` can pass only `io::Error`, so the reason of the stop is kept in `stop`.
            let visited = self.visit(&key, kind);
            visited.map_err(|why| {
                stop = Some(why);
                io::Error::other("stopped")
            })
        });
        match stop {
            Some(stop) => Err(stop),
            None => walked.map_err(failed),
        }
    }

    fn visit(&mut self, key: &str, kind: FileType) -> Result<(), Stop> {
        match key.parse::<CachePath>() {
            // A name that parses but is not the key of the object is never read, so it is listed as
            // foreign.
            Ok(path) if path.key() == key => self.found(path, key),
            _ if key == OWN_FOLDER => Ok(()),
            // Other folders are not read; `lost+found`, for example, is readable only by root.
            _ if CachePath::is_folder(key) && self.is_folder(key, kind) => {
                self.walk(key, &format!("{key}/"))
            }
            _ => self.push(Listed::Foreign(key.to_owned())),
        }
    }

    fn is_folder(&self, key: &str, kind: FileType) -> bool {
        let target = || rustix::fs::statat(self.root, key, AtFlags::empty());
        match kind {
            FileType::Symlink => target()
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            kind => kind == FileType::Directory,
        }
    }

    fn found(&mut self, path: CachePath, key: &str) -> Result<(), Stop> {
        if path == CachePath::CacheInfo {
            return Ok(());
        }
        let wanted = (self.wanted)(&path);
        match inspect(self.root, key, wanted) {
            Ok(Inspection::Object { metadata, content: None, .. })
                if matches!(path, CachePath::NarInfo(_)) && wanted =>
            {
                let error = StoreError::narinfo_too_large(key, metadata.size);
                self.push(Listed::Unreadable(path, error))
            }
            Ok(Inspection::Object { metadata, content, owner }) => {
                if wanted {
                    self.other_owners.note(owner, key);
                }
                self.bytes += content.as_ref().map_or(0, Bytes::len);
                self.push(Listed::Object(ListedObject { path, metadata, content }))
            }
            Ok(Inspection::NoFile(metadata)) => self.push(Listed::NoFile(path, metadata.etag)),
            // The object was removed meanwhile.
            Ok(Inspection::Absent) => Ok(()),
            Err(error) => self.push(Listed::Unreadable(path, error)),
        }
    }

    fn push(&mut self, listed: Listed) -> Result<(), Stop> {
        self.batch.push(Ok(listed));
        let full = self.batch.len() >= LIST_BATCH_LIMIT || self.bytes >= LIST_BATCH_BYTES;
        if full { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<(), Stop> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        self.sender.blocking_send(batch).map_err(|_| Stop::Unwanted)
    }
}

/// Objects of other users. Uses are recorded in access times, and the system lets only the owner of
/// a file read it without changing its access time (`O_NOATIME`): so listing such an object counts
/// as use.
struct OtherOwners {
    /// The user of the daemon, if reading the files of other users changes their access times.
    user: Option<Uid>,
    count: u64,
    first: Option<(Uid, String)>,
}

impl OtherOwners {
    fn new(root: &Root, open: &OpenRoot) -> Self {
        let unrecorded = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RDONLY;
        let records = |disk: rustix::fs::StatVfs| !disk.f_flag.intersects(unrecorded);
        let user = geteuid();
        // A command on the directory of another user has already reported this.
        let is_own = || rustix::fs::fstat(open).is_ok_and(|stat| stat.st_uid == user.as_raw());
        // Root may use `O_NOATIME` for all files.
        let matters = !user.is_root()
            && rustix::fs::fstatvfs(open).is_ok_and(records)
            && (root.role() == Role::Daemon || is_own());
        Self { user: matters.then_some(user), count: 0, first: None }
    }

    fn note(&mut self, owner: Uid, key: &str) {
        if self.user.is_some_and(|user| user != owner) {
            self.count += 1;
            self.first.get_or_insert_with(|| (owner, key.to_owned()));
        }
    }

    /// Logs the warning once for each directory, because an hourly collection would repeat it every
    /// hour.
    fn log(&self, root: &Root) {
        if let (Some(user), Some((owner, key))) = (self.user, &self.first)
            && root.current().is_first_warning()
        {
            let (user, owner, count) = (user.as_raw(), owner.as_raw(), self.count);
            // The working directory of a command can have a relative path.
            let path = root.path().to_str().filter(|path| path.starts_with('/'));
            let path = path.unwrap_or("<the cache's directory>");
            warn!(
                count, example = %key, owner,
                "objects belong to another user, so reading them counts as use and garbage \
                 collection never removes them; as root, run: chown -R {user} {path}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

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
        list(Arc::new(Root::open(dir, Role::Command).unwrap()), narinfos)
    }

    #[tokio::test]
    async fn every_object_is_listed_and_no_file_of_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let nar = |number: usize| format!("nar/{number:0>52}.nar.xz");
        let log = format!("log/{HASH}-hello.drv");
        let trace = format!("build-trace-v2/{HASH}-hello.drv/out.doi");
        // The number of objects is no multiple of the batch size.
        let mut objects: Vec<String> = (0..2 * LIST_BATCH_LIMIT + 7).map(nar).collect();
        objects.extend([format!("{HASH}.narinfo"), format!("{HASH}.ls"), log, trace]);
        let foreign = ["README", "nar/README", "lost+found", "nar/x.nar"];
        let own = ["nix-cache-info", ".nix-stored/lock", ".nix-stored/trash/nar/x"];
        for key in objects.iter().map(String::as_str).chain(foreign).chain(own) {
            put(dir.path(), key);
        }
        let obstacle = format!("{}.narinfo", HASH.replace('8', "9"));
        fs::create_dir(dir.path().join(&obstacle)).unwrap();

        let mut found = BTreeMap::new();
        let (mut strangers, mut obstacles) = (Vec::new(), Vec::new());
        let mut all = listed(dir.path());
        while let Some(one) = all.next().await {
            match one.unwrap() {
                Listed::Object(object) => {
                    let key = object.path.key();
                    assert_eq!(object.metadata.size, key.len() as u64);
                    found.insert(key, object.content);
                }
                Listed::Foreign(name) => strangers.push(name),
                Listed::NoFile(path, _) => obstacles.push(path.key()),
                Listed::Unreadable(path, error) => panic!("{path}: {error}"),
            }
        }
        objects.sort();
        strangers.sort();
        assert!(found.keys().eq(&objects));
        assert_eq!(obstacles, [obstacle]);
        assert_eq!(strangers, ["README", "lost+found", "nar/README", "nar/x.nar"]);
        for (key, content) in found {
            let wanted = key.ends_with(".narinfo").then(|| key.clone().into_bytes());
            assert_eq!(content.map(Vec::from), wanted, "{key}");
        }
    }

    #[tokio::test]
    async fn a_missing_directory_has_no_objects() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = listed(dir.path());
        fs::remove_dir(dir.path()).unwrap();
        // The list may have opened the directory before or after its removal.
        assert!(!matches!(all.next().await, Some(Ok(_))));
        assert!(all.next().await.is_none());
    }

    #[tokio::test]
    async fn the_list_thread_ends_when_the_receiver_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..LIST_BATCH_LIMIT * (QUEUED_BATCHES + 4) {
            put(dir.path(), &format!("nar/{number:0>52}.nar"));
        }
        let root = Arc::new(Root::open(dir.path(), Role::Command).unwrap());
        let mut all = list(Arc::clone(&root), narinfos);
        assert!(all.next().await.is_some());
        assert!(Arc::strong_count(&root) > 1);
        drop(all);
        // The thread holds a reference until it ends.
        while Arc::strong_count(&root) > 1 {
            std::thread::yield_now();
        }
    }
}
