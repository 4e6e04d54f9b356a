//! Publishes staged objects durably, many at a time.
//!
//! An object is durable if its file is synced before the rename and its directory after it. Each
//! sync makes the disk write its journal, whether for one file or for a hundred. So one thread
//! commits everything that has arrived while it was busy with the previous batch: it writes and
//! syncs all files, renames all of them, syncs each directory once, and only then acknowledges the
//! uploads. Under load the batches grow and the cost of an object falls; a single object waits for
//! no other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::folder::split;
use super::open_root::OpenRoot;
use super::reservation::Reservations;
use super::root::Root;
use super::staging::StagedFile;
use crate::store::Stored;
use crate::store::error::UnusableDirectory;

/// More than this many objects are not committed at once: the first would wait for the last.
const BATCH: usize = 256;

/// How long a batch waits to become as large as the last one. A sync takes about as long.
const GATHER: Duration = Duration::from_micros(300);

/// From this many files on, one sync of the file system costs less than one of each file
/// (measured on ext4: 64 files of 4 KiB in 5.2 ms instead of 14.3 ms).
const SYNC_ALL_FROM: usize = 4;

/// A sync of the file system also writes what other programs have left to write. When one takes
/// longer than this, files are synced one by one for a while.
const SYNC_ALL_SLOW: Duration = Duration::from_millis(250);
const SYNC_ALL_PAUSE: Duration = Duration::from_secs(30);

/// A new object before its publication.
pub(super) enum NewObject {
    /// Not written yet.
    InMemory(Bytes),
    /// Written to the staging folder of this directory, and not synced if there is a file.
    Staged(Arc<OpenRoot>, Option<File>, StagedFile),
}

struct Job {
    object: NewObject,
    key: String,
    done: oneshot::Sender<io::Result<Stored>>,
}

/// The commit thread.
#[derive(Debug)]
pub(super) struct Committer {
    jobs: Sender<Job>,
}

impl Committer {
    pub(super) fn start(root: Arc<Root>, reservations: Arc<Reservations>) -> Self {
        let (jobs, queue) = channel();
        let worker = Worker { root, reservations, sync_each_until: None };
        // It ends when the last sender is gone.
        std::thread::Builder::new()
            .name("commit".to_owned())
            .spawn(move || worker.run(&queue))
            .expect("a thread can be started when the daemon starts");
        Self { jobs }
    }

    /// Publishes `object` as `key`. The answer comes when it is durable and visible.
    pub(super) fn commit(
        &self,
        object: NewObject,
        key: String,
    ) -> oneshot::Receiver<io::Result<Stored>> {
        let (done, answer) = oneshot::channel();
        // If the thread has ended, `answer` is closed, which the caller notices.
        let _ = self.jobs.send(Job { object, key, done });
        answer
    }
}

struct Worker {
    root: Arc<Root>,
    reservations: Arc<Reservations>,
    sync_each_until: Option<Instant>,
}

/// A job whose file is staged.
struct Ready {
    /// None where it is synced already.
    file: Option<File>,
    staged: StagedFile,
    key: String,
    done: oneshot::Sender<io::Result<Stored>>,
}

/// The receiver may have been dropped.
fn answer(done: oneshot::Sender<io::Result<Stored>>, result: io::Result<Stored>) {
    let _ = done.send(result);
}

impl Worker {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut expected = 1;
        while let Ok(first) = queue.recv() {
            // From here on, objects are stored in the directory that is at the path now.
            let root = self.root.look_and_wait();
            let batch = self.gather(&root, first, queue, expected);
            expected = batch.len();
            if let Ok(root) = root {
                self.commit(&root, batch);
            }
        }
    }

    /// Stages all waiting jobs, and those that are likely to come immediately: clients that were
    /// answered together send their next requests together, and a batch of only the first one would
    /// make all others wait for its syncs.
    fn gather(
        &self,
        root: &Result<Arc<OpenRoot>, UnusableDirectory>,
        first: Job,
        queue: &Receiver<Job>,
        expected: usize,
    ) -> Vec<Ready> {
        let mut batch = Vec::with_capacity(expected);
        batch.extend(self.stage(root, first));
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH {
            let next = if batch.len() < expected {
                queue.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
            } else {
                queue.try_recv().ok()
            };
            match next {
                Some(job) => batch.extend(self.stage(root, job)),
                None => break,
            }
        }
        batch
    }

    fn commit(&mut self, root: &OpenRoot, ready: Vec<Ready>) {
        let synced = self.sync(root, ready);
        let mut folders = BatchFolders::new(root);
        let renamed: Vec<(Ready, Stored)> =
            synced.into_iter().filter_map(|job| rename(job, &mut folders)).collect();
        let failed = folders.sync();
        // Readers would look for the objects in the directory that is at the path.
        let there = match renamed.is_empty() {
            true => Ok(()),
            false => self.root.still_leads_to(root),
        };
        for (mut job, stored) in renamed {
            // A notified client may remount the disk read-only, so no file may be open for writing
            // then.
            job.file = None;
            let result = match failed.iter().find(|(folder, _)| needs(&job.key, folder)) {
                Some((folder, error)) => {
                    root.unsynced.doubt(folder, &job.key);
                    Err(copy_of(error))
                }
                None => there.clone().map(|()| stored).map_err(io::Error::other),
            };
            answer(job.done, result);
        }
    }

    /// Writes objects that are in memory. A failed job is answered and dropped, here and below.
    fn stage(&self, root: &Result<Arc<OpenRoot>, UnusableDirectory>, job: Job) -> Option<Ready> {
        let Job { object, key, done } = job;
        let staged = match (root, object) {
            (Err(unusable), _) => Err(io::Error::other(unusable.clone())),
            (Ok(root), NewObject::InMemory(bytes)) => self.write(root, &bytes),
            (Ok(root), NewObject::Staged(staged_in, ..))
                if staged_in.generation != root.generation =>
            {
                let why = "it was replaced during the upload; try again";
                Err(io::Error::other(UnusableDirectory(why.to_owned())))
            }
            (Ok(_), NewObject::Staged(_, file, staged)) => Ok((file, staged)),
        };
        match staged {
            Ok((file, staged)) => Some(Ready { file, staged, key, done }),
            Err(error) => {
                answer(done, Err(error));
                None
            }
        }
    }

    fn write(&self, root: &OpenRoot, bytes: &[u8]) -> io::Result<(Option<File>, StagedFile)> {
        let write = || {
            let (mut file, staged) = root.stage()?;
            file.write_all(bytes)?;
            Ok((Some(file), staged))
        };
        let is_full = |error: &io::Error| error.raw_os_error() == Some(Errno::NOSPC.raw_os_error());
        match write() {
            Err(error) if is_full(&error) && self.reservations.release_slow() => write(),
            written => written,
        }
    }

    fn sync(&mut self, root: &OpenRoot, jobs: Vec<Ready>) -> Vec<Ready> {
        let unsynced = jobs.iter().filter(|job| job.file.is_some()).count();
        let patient = self.sync_each_until.is_none_or(|until| until < Instant::now());
        if unsynced >= SYNC_ALL_FROM && patient && root.syncs_as_a_whole {
            let started = Instant::now();
            let synced = rustix::fs::syncfs(root);
            if started.elapsed() > SYNC_ALL_SLOW {
                self.sync_each_until = Some(Instant::now() + SYNC_ALL_PAUSE);
            }
            if synced.is_ok() {
                return jobs;
            }
            // Which file it failed for, syncing each one will show.
        }
        jobs.into_iter().filter_map(sync_one).collect()
    }
}

fn sync_one(job: Ready) -> Option<Ready> {
    let synced = job.file.as_ref().map_or(Ok(()), File::sync_all);
    Some(or_answer(job, synced)?.0)
}

fn rename(mut job: Ready, folders: &mut BatchFolders<'_>) -> Option<(Ready, Stored)> {
    let (folder, base) = split(&job.key);
    let renamed =
        folders.open(&job.key, folder).and_then(|folder| Ok(job.staged.publish(folder, base)?));
    or_answer(job, renamed)
}

/// A job that fails takes what it has staged with it.
fn or_answer<T>(job: Ready, step: io::Result<T>) -> Option<(Ready, T)> {
    match step {
        Ok(done) => Some((job, done)),
        Err(error) => {
            let Ready { staged, done, .. } = job;
            drop(staged);
            answer(done, Err(error));
            None
        }
    }
}

/// Whether an object is on the disk for good only if the directory `folder` is: its own, one above
/// it, or that of the NAR that it names.
fn needs(key: &str, folder: &str) -> bool {
    let mut above = key;
    while above != "." {
        above = split(above).0;
        if above == folder {
            return true;
        }
    }
    folder == "nar" && key.ends_with(".narinfo")
}

/// The directories that a batch publishes into, each opened once.
struct BatchFolders<'a> {
    root: &'a OpenRoot,
    /// Those that could not be synced before.
    unsynced: Vec<(String, io::Error)>,
    open: BTreeMap<String, OwnedFd>,
}

impl<'a> BatchFolders<'a> {
    /// What failed before is tried again before there is more that needs it.
    fn new(root: &'a OpenRoot) -> Self {
        Self { root, unsynced: root.sync_what_failed(), open: BTreeMap::new() }
    }

    /// The directory `folder` below the root, for the object `key`.
    fn open(&mut self, key: &str, folder: &str) -> io::Result<&OwnedFd> {
        if let Some((_, error)) = self.unsynced.iter().find(|(folder, _)| needs(key, folder)) {
            return Err(copy_of(error));
        }
        if !self.open.contains_key(folder) {
            let fd = self.root.make_folder(folder)?;
            self.open.insert(folder.to_owned(), fd);
        }
        Ok(&self.open[folder])
    }

    /// Syncs them, and returns those for which that failed.
    fn sync(self) -> Vec<(String, io::Error)> {
        let root = self.root;
        let synced = self.open.into_iter().map(|(folder, fd)| (root.sync(&folder, fd), folder));
        synced.filter_map(|(synced, folder)| Some((folder, synced.err()?))).collect()
    }
}

/// Copies an error for each of several jobs that wait for the same sync.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narinfo_needs_its_own_folder_and_that_of_its_nar() {
        for (key, needed, not) in [
            ("x.narinfo", &[".", "nar"][..], &["log", ".nix-stored"][..]),
            ("nar/x.nar", &["nar", "."], &["log"]),
            (
                "build-trace-v2/x.drv/out.doi",
                &["build-trace-v2/x.drv", "build-trace-v2", "."],
                &["nar"],
            ),
            ("x.ls", &["."], &["nar"]),
        ] {
            assert!(needed.iter().all(|folder| needs(key, folder)), "{key}");
            assert!(!not.iter().any(|folder| needs(key, folder)), "{key}");
        }
    }
}
