//! Records uses of objects in their access times.
//!
//! The kernel's access times are not reliable: `noatime` disables them, `relatime` is up to a day
//! late, and objects that are served from memory or requested by HEAD are not read at all. So the
//! daemon sets the times itself, on a separate thread, because changing an inode may wait for the
//! journal.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::root::Root;
use crate::nix::CachePath;
use crate::store::StoreError;

/// The number of uses that may wait to be recorded. If the queue is full, `note` drops the use and
/// `mark` waits.
const FS_QUEUE_LIMIT: usize = 4096;

/// The number of lookups of an object that a collection moved away while its use was recorded.
const MOVED_AWAY_TRIES: u32 = 50;

/// The pause between two of these lookups.
const MOVED_AWAY_PAUSE: Duration = Duration::from_millis(1);

/// The recording thread.
#[derive(Debug)]
pub(super) struct FsUses {
    queue: mpsc::Sender<FsUse>,
}

struct FsUse {
    key: String,
    /// The channel of a caller that waits for the record.
    done: Option<oneshot::Sender<Result<bool, Errno>>>,
}

impl FsUses {
    pub(super) fn start(root: Arc<Root>) -> Self {
        let (queue, uses) = mpsc::channel(FS_QUEUE_LIMIT);
        // The thread ends when the last sender is dropped.
        std::thread::Builder::new()
            .name("uses".to_owned())
            .spawn(move || record(&root, uses))
            .expect("a thread can be started when the store is opened");
        Self { queue }
    }

    /// Records the use of an object, without waiting.
    pub(super) fn note(&self, path: &CachePath) {
        // If the queue is full, the use is dropped: one lost use among thousands does not matter.
        let _ = self.queue.try_send(FsUse { key: path.key(), done: None });
    }

    /// Records the use of an object. Returns false if the object is absent.
    pub(super) async fn mark(&self, path: &CachePath) -> Result<bool, StoreError> {
        let key = path.key();
        let (done, answer) = oneshot::channel();
        if self.queue.send(FsUse { key: key.clone(), done: Some(done) }).await.is_err() {
            return Err(gone(&key));
        }
        match answer.await {
            Ok(marked) => {
                marked.map_err(|error| StoreError::new("recording the use of", &key, error))
            }
            Err(_) => Err(gone(&key)),
        }
    }
}

fn gone(key: &str) -> StoreError {
    let error = io::Error::other("the recording thread has ended");
    StoreError::new("recording the use of", key, error)
}

fn record(root: &Root, mut uses: mpsc::Receiver<FsUse>) {
    while let Some(FsUse { key, done }) = uses.blocking_recv() {
        match (mark(root.current().fd(), &key), done) {
            // The receiver may have been dropped.
            (marked, Some(done)) => drop(done.send(marked)),
            (Err(error), None) => warn!(%error, key, "cannot record the use of an object"),
            (Ok(_), None) => {}
        }
    }
}

fn mark(root: impl AsFd, key: &str) -> Result<bool, Errno> {
    let special = |nanos| Timespec { tv_sec: 0, tv_nsec: nanos };
    let now =
        Timestamps { last_access: special(UTIME_NOW), last_modification: special(UTIME_OMIT) };
    match rustix::fs::utimensat(&root, key, &now, AtFlags::empty()) {
        // Uses cannot be recorded on a read-only or full disk, for a file of another owner, or if
        // the kernel or a sandbox does not support the call. The object is served anyway.
        Err(
            Errno::ROFS
            | Errno::PERM
            | Errno::ACCESS
            | Errno::NOSPC
            | Errno::DQUOT
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::OPNOTSUPP,
        ) => match rustix::fs::statat(&root, key, AtFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            found => found.map(|_| true),
        },
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        marked => marked.and_then(|()| stayed(root, key)),
    }
}

/// Returns whether an object is still at its name after its access time was set.
///
/// `utimensat` looks the name up first and sets the time afterwards. Between the two, a collection may
/// move the object to the trash, read its old access time and delete it. An object that is at its name
/// after its time was set is safe: a collection that moves it now reads the new time and moves it back.
fn stayed(root: impl AsFd, key: &str) -> Result<bool, Errno> {
    for _ in 0..MOVED_AWAY_TRIES {
        match rustix::fs::statat(&root, key, AtFlags::empty()) {
            // A collection is about to delete the object, or to move it back.
            Err(Errno::NOENT | Errno::NOTDIR) => std::thread::sleep(MOVED_AWAY_PAUSE),
            found => return found.map(|_| true),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::sync::Barrier;
    use std::time::SystemTime;

    use super::*;
    use crate::store::fs::remove::Trash;
    use crate::store::fs::root::Role;

    const ROUNDS: usize = 5000;

    #[tokio::test]
    async fn a_use_changes_the_access_time_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let uses = FsUses::start(Arc::new(Root::open(dir.path(), Role::Command).unwrap()));
        let path: CachePath = "8ha1dhmx807czjczmwy078s4r9s254il.narinfo".parse().unwrap();
        assert!(!uses.mark(&path).await.unwrap());
        assert!(!uses.mark(&format!("nar/{:0>52}.nar", 1).parse().unwrap()).await.unwrap());

        let file = dir.path().join(path.key());
        fs::write(&file, "text").unwrap();
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let times = FileTimes::new().set_accessed(past).set_modified(past);
        File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
        assert!(uses.mark(&path).await.unwrap());
        let metadata = fs::metadata(&file).unwrap();
        assert!(metadata.accessed().unwrap() > past + Duration::from_secs(1_000_000));
        assert_eq!(metadata.modified().unwrap(), past);
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    }

    #[test]
    fn an_object_is_not_removed_while_its_use_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), Role::Command).unwrap().check_path().unwrap();
        let (trash, file) = (Trash::default(), dir.path().join("x"));
        let now = SystemTime::now();
        let old = now - Duration::from_secs(86_400);
        let times = FileTimes::new().set_accessed(old).set_modified(old);
        for _ in 0..ROUNDS {
            File::create(&file).unwrap().set_times(times).unwrap();
            let barrier = Barrier::new(2);
            let recorded = std::thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    trash.remove(&root, "x", now - Duration::from_secs(1)).unwrap();
                });
                barrier.wait();
                mark(root.fd(), "x").unwrap()
            });
            assert!(!recorded || file.exists(), "its use was recorded, and it was removed");
        }
    }

    #[test]
    fn an_object_that_is_moved_back_counts_as_present() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), Role::Command).unwrap().check_path().unwrap();
        assert!(!stayed(root.fd(), "x").unwrap());
        fs::write(dir.path().join("moved"), "").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| fs::rename(dir.path().join("moved"), dir.path().join("x")).unwrap());
            assert!(stayed(root.fd(), "x").unwrap());
        });
    }
}
