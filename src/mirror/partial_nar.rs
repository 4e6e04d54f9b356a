//! A NAR during its fetch, shared by all its readers.
//!
//! Readers follow the file while it grows. The last byte is held back until the whole NAR has been
//! verified: if verification fails, all transfers are aborted, and no client sees the NAR as
//! complete.
//!
//! A reader waits for the whole NAR in two cases: if the upstream does not send the length, and if
//! there is no temporary file to read from. In the second case the NAR is read from the store.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::error::{UpstreamError, UpstreamFailure};
use crate::nix::CachePath;
use crate::nix::cache_path::NarName;
use crate::store::{Content, Metadata, Object, RangeRead, Store, file_stream};

/// How much a reader takes at a time, at most.
const CHUNK: u64 = 256 * 1024;

/// A NAR during its fetch.
pub(super) struct PartialNar {
    name: NarName,
    /// Its length, if it is known before its end.
    size: Option<u64>,
    started: SystemTime,
    /// The progress of the fetch.
    file: Option<Arc<File>>,
    /// Where it is when all of it has come.
    store: Arc<Store>,
    upstream: String,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// This many bytes are in the file.
    Written(u64),
    /// The file is missing or incomplete. The NAR can be read from the store after its end.
    InStore,
    /// All `size` bytes have come, and they are right.
    Right { size: u64, in_file: bool },
    /// They will never come, or they are wrong.
    Failed,
}

impl State {
    fn has_ended(&self) -> bool {
        matches!(self, Self::Right { .. } | Self::Failed)
    }
}

impl PartialNar {
    /// Where there is no `file` to read it from, it is read from `store` at its end.
    pub(super) fn new(
        name: NarName,
        size: Option<u64>,
        file: Option<File>,
        store: Arc<Store>,
        upstream: String,
    ) -> Self {
        let state = if file.is_some() { State::Written(0) } else { State::InStore };
        let state = watch::Sender::new(state);
        let file = file.map(Arc::new);
        Self { name, size, started: SystemTime::now(), file, store, upstream, state }
    }

    pub(super) fn written(&self, count: u64) {
        self.state.send_modify(|state| {
            if let State::Written(before) = state {
                *before += count;
            }
        });
    }

    /// The file gets no more bytes; readers wait for the end and read from the store.
    pub(super) fn copy_ended(&self) {
        self.state.send_replace(State::InStore);
    }

    /// It has ended; with its length, if it is right.
    pub(super) fn ended(&self, right: Option<u64>) {
        self.state.send_modify(|state| {
            let in_file = matches!(state, State::Written(_));
            *state = right.map_or(State::Failed, |size| State::Right { size, in_file });
        });
    }

    /// Whether there are readers.
    pub(super) fn is_read(&self) -> bool {
        self.state.receiver_count() > 0
    }

    /// Returns when it has ended: its length, if it is right.
    pub(super) async fn end(&self) -> Option<u64> {
        let mut state = self.state.subscribe();
        match state.wait_for(State::has_ended).await.map(|state| *state) {
            Ok(State::Right { size, .. }) => Some(size),
            _ => None,
        }
    }

    /// Returns the metadata, or `None` while the length is unknown.
    pub(super) fn metadata(&self) -> Option<Metadata> {
        self.size.map(|size| metadata(self.name, size, self.started))
    }

    /// It, as an object of a store, as soon as its length is known.
    pub(super) fn object(&self) -> impl Future<Output = Result<Object, UpstreamError>> + use<> {
        let mut reader = Reader {
            name: self.name,
            file: self.file.clone(),
            store: Arc::clone(&self.store),
            size: 0,
            // From now on it counts as a reader.
            state: self.state.subscribe(),
        };
        let (size, started, upstream) = (self.size, self.started, self.upstream.clone());
        async move {
            reader.size = match size {
                Some(size) => size,
                None => reader.end().await.ok_or_else(|| {
                    let failure =
                        UpstreamFailure::Connection("the transfer of the NAR failed".to_owned());
                    UpstreamError { upstream, failure }
                })?,
            };
            let metadata = metadata(reader.name, reader.size, started);
            Ok(Object { metadata, content: Content::Stream(Box::new(reader)) })
        }
    }
}

/// What there is to know about a NAR that is not here yet.
pub(super) fn metadata(name: NarName, size: u64, now: SystemTime) -> Metadata {
    Metadata { size, modified: now, used: now, etag: format!("\"{name}\"").into() }
}

struct Reader {
    name: NarName,
    file: Option<Arc<File>>,
    store: Arc<Store>,
    size: u64,
    state: watch::Receiver<State>,
}

/// The location of the next bytes.
enum Next {
    /// In the file, up to here.
    InFile(Arc<File>, u64),
    /// In the store, with all others.
    Stored,
}

impl Reader {
    /// The length of all of it, when it has come; none if it failed.
    async fn end(&mut self) -> Option<u64> {
        match self.state.wait_for(State::has_ended).await.map(|state| *state) {
            Ok(State::Right { size, .. }) => Some(size),
            _ => None,
        }
    }

    /// Waits until there is something after `at`.
    async fn next(&mut self, at: u64) -> io::Result<Next> {
        let all_but_the_last = self.size.saturating_sub(1);
        let is_there = |state: &State| match *state {
            State::Written(count) => count.min(all_but_the_last) > at,
            State::InStore => false,
            State::Right { .. } | State::Failed => true,
        };
        let state = self.state.wait_for(is_there).await.map(|state| *state);
        match (state, &self.file) {
            (Ok(State::Written(count)), Some(file)) => {
                Ok(Next::InFile(Arc::clone(file), count.min(all_but_the_last)))
            }
            (Ok(State::Right { in_file: true, size }), Some(file)) => {
                Ok(Next::InFile(Arc::clone(file), size))
            }
            (Ok(State::Right { .. }), _) => Ok(Next::Stored),
            _ => Err(io::Error::other("the upstream failed during the transfer")),
        }
    }

    /// The bytes of `range`, from the store.
    async fn stored(&self, range: Range<u64>) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let object = self.store.get(&CachePath::Nar(self.name)).await.map_err(io::Error::other)?;
        let object =
            object.ok_or_else(|| io::Error::other("the NAR was removed during the response"))?;
        Ok(object.content.into_stream(range))
    }
}

impl RangeRead for Reader {
    fn is_download(&self) -> bool {
        // All readers share the file, and the one that fetches it has the connection.
        false
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        // One part after the other, until the end.
        let parts = stream::try_unfold((self, range), |(mut reader, range)| async move {
            if range.is_empty() {
                return Ok::<_, io::Error>(None);
            }
            let (part, end) = match reader.next(range.start).await? {
                Next::InFile(file, end) => {
                    let end = end.min(range.end).min(range.start + CHUNK);
                    (file_stream(file, range.start..end), end)
                }
                Next::Stored => (reader.stored(range.clone()).await?, range.end),
            };
            Ok(Some((part, (reader, end..range.end))))
        });
        parts.try_flatten().boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::store::FsStore;

    struct World {
        growing: PartialNar,
        file: File,
        store: Arc<Store>,
        name: NarName,
        _dir: tempfile::TempDir,
    }

    fn world(size: Option<u64>, in_file: bool) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<Store> = Arc::new(FsStore::open(dir.path(), 0).unwrap().into());
        let file = tempfile::tempfile().unwrap();
        let name = format!("{}.nar", "0".repeat(52)).parse().unwrap();
        let readable = in_file.then(|| file.try_clone().unwrap());
        let growing = PartialNar::new(name, size, readable, Arc::clone(&store), "x".to_owned());
        World { growing, file, store, name, _dir: dir }
    }

    async fn read(
        growing: &PartialNar,
        range: Range<u64>,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        match growing.object().await.unwrap().content {
            Content::Stream(reader) => reader.read(range),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_there_is_read_before_the_rest_and_the_last_byte_at_the_end() {
        let World { growing, mut file, .. } = world(Some(6), true);
        let mut reader = read(&growing, 0..6).await;
        file.write_all(b"abc").unwrap();
        growing.written(3);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "abc");
        file.write_all(b"def").unwrap();
        growing.written(3);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "de");
        growing.ended(Some(6));
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "f");
        assert!(reader.try_next().await.unwrap().is_none());
        let late: Vec<Bytes> = read(&growing, 2..4).await.try_collect().await.unwrap();
        assert_eq!(late.concat(), b"cd");
        assert_eq!(growing.end().await, Some(6));
    }

    #[tokio::test]
    async fn what_is_wrong_is_broken_off_for_everybody() {
        let World { growing, mut file, .. } = world(Some(3), true);
        let early = read(&growing, 0..3).await;
        file.write_all(b"abc").unwrap();
        growing.written(3);
        growing.ended(None);
        assert!(early.try_collect::<Vec<Bytes>>().await.is_err());
        assert!(read(&growing, 0..3).await.try_collect::<Vec<Bytes>>().await.is_err());
        assert_eq!(growing.end().await, None);
    }

    #[tokio::test]
    async fn without_a_length_it_is_waited_for() {
        let World { growing, mut file, .. } = world(None, true);
        let waiting = growing.object();
        assert!(growing.is_read());
        assert_eq!(growing.metadata(), None);
        file.write_all(b"abc").unwrap();
        growing.written(3);
        growing.ended(Some(3));
        let object = waiting.await.unwrap();
        assert_eq!(object.metadata.size, 3);
        let Content::Stream(reader) = object.content else { panic!("it is not in memory") };
        assert_eq!(reader.read(0..3).try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"abc");

        let World { growing, .. } = world(None, true);
        let waiting = growing.object();
        growing.ended(None);
        assert!(waiting.await.is_err());
    }

    #[tokio::test]
    async fn what_is_not_in_the_file_is_read_from_the_store() {
        let World { growing, mut file, store, name, _dir } = world(Some(6), true);
        let mut early = read(&growing, 0..6).await;
        file.write_all(b"abc").unwrap();
        growing.written(3);
        assert_eq!(early.try_next().await.unwrap().unwrap(), "abc");
        growing.copy_ended();
        // It counts no more.
        growing.written(3);
        let late = read(&growing, 1..5).await;
        store.put(&CachePath::Nar(name), "abcdef".into()).await.unwrap();
        growing.ended(Some(6));
        assert_eq!(early.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"def");
        assert_eq!(late.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"bcde");
    }

    #[tokio::test]
    async fn without_a_file_it_is_read_from_the_store() {
        let World { growing, store, name, _dir, .. } = world(Some(6), false);
        let reader = read(&growing, 0..6).await;
        growing.written(6);
        store.put(&CachePath::Nar(name), "abcdef".into()).await.unwrap();
        growing.ended(Some(6));
        assert_eq!(reader.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"abcdef");
    }

    #[tokio::test]
    async fn whoever_reads_it_is_counted() {
        let World { growing, .. } = world(Some(3), true);
        let reader = read(&growing, 0..3).await;
        assert!(growing.is_read());
        drop(reader);
        assert!(!growing.is_read());
    }
}
