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

/// The maximum number of bytes that a reader reads at a time.
const READ_CHUNK: u64 = 256 * 1024;

/// A NAR during its fetch.
pub(super) struct PartialNar {
    name: NarName,
    /// The size of the NAR file in bytes, if the upstream sent it.
    size: Option<u64>,
    started: SystemTime,
    /// The file that the readers read from.
    file: Option<Arc<File>>,
    /// The store that has the NAR after the fetch.
    store: Arc<Store>,
    upstream: String,
    state: watch::Sender<FetchState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchState {
    /// This number of bytes can be read from the file.
    Written(u64),
    /// The file is missing or incomplete. The NAR can be read from the store after its end.
    InStore,
    /// The NAR has `size` bytes and was verified.
    Verified { size: u64, in_file: bool },
    /// The transfer or the verification failed.
    Failed,
}

impl FetchState {
    fn has_ended(&self) -> bool {
        matches!(self, Self::Verified { .. } | Self::Failed)
    }
}

impl PartialNar {
    /// Creates the state of a fetch that has just started. Without a `file`, readers read from
    /// `store` after the fetch.
    pub(super) fn new(
        name: NarName,
        size: Option<u64>,
        file: Option<File>,
        store: Arc<Store>,
        upstream: String,
    ) -> Self {
        let state = if file.is_some() { FetchState::Written(0) } else { FetchState::InStore };
        let state = watch::Sender::new(state);
        let file = file.map(Arc::new);
        Self { name, size, started: SystemTime::now(), file, store, upstream, state }
    }

    /// Reports that `count` more bytes can be read from the file.
    pub(super) fn written(&self, count: u64) {
        self.state.send_modify(|state| {
            if let FetchState::Written(before) = state {
                *before += count;
            }
        });
    }

    /// Reports that the file gets no more bytes. Readers wait for the end, and read from the store.
    pub(super) fn copy_ended(&self) {
        self.state.send_replace(FetchState::InStore);
    }

    /// Reports the end of the fetch: with the size of the verified NAR, or with `None` if the fetch failed.
    pub(super) fn finish(&self, verified_size: Option<u64>) {
        self.state.send_modify(|state| {
            let in_file = matches!(state, FetchState::Written(_));
            *state = verified_size
                .map_or(FetchState::Failed, |size| FetchState::Verified { size, in_file });
        });
    }

    /// Whether there are readers.
    pub(super) fn has_readers(&self) -> bool {
        self.state.receiver_count() > 0
    }

    /// Waits for the end of the fetch. Returns the size of the NAR if it is verified.
    pub(super) async fn wait_for_end(&self) -> Option<u64> {
        let mut state = self.state.subscribe();
        match state.wait_for(FetchState::has_ended).await.map(|state| *state) {
            Ok(FetchState::Verified { size, .. }) => Some(size),
            _ => None,
        }
    }

    /// Returns the metadata, or `None` while the length is unknown.
    pub(super) fn metadata(&self) -> Option<Metadata> {
        self.size.map(|size| metadata(self.name, size, self.started))
    }

    /// Returns the NAR as an object, as soon as its length is known. The object counts as a reader
    /// from the call on, even before the future is polled.
    pub(super) fn object(&self) -> impl Future<Output = Result<Object, UpstreamError>> + use<> {
        let mut reader = PartialNarReader {
            name: self.name,
            file: self.file.clone(),
            store: Arc::clone(&self.store),
            size: 0,
            // The receiver counts as a reader from now on.
            state: self.state.subscribe(),
        };
        let (size, started, upstream) = (self.size, self.started, self.upstream.clone());
        async move {
            reader.size = match size {
                Some(size) => size,
                None => reader.wait_for_end().await.ok_or_else(|| {
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

/// Returns the metadata of a NAR that is not in the store yet.
pub(super) fn metadata(name: NarName, size: u64, now: SystemTime) -> Metadata {
    Metadata { size, modified: now, used: now, etag: format!("\"{name}\"").into() }
}

struct PartialNarReader {
    name: NarName,
    file: Option<Arc<File>>,
    store: Arc<Store>,
    size: u64,
    state: watch::Receiver<FetchState>,
}

/// The location of the next bytes.
enum NextBytes {
    /// In the file, up to this position.
    InFile(Arc<File>, u64),
    /// In the store, like all bytes after them.
    Stored,
}

impl PartialNarReader {
    /// Waits for the end of the fetch. Returns the size of the NAR if the NAR is verified.
    async fn wait_for_end(&mut self) -> Option<u64> {
        match self.state.wait_for(FetchState::has_ended).await.map(|state| *state) {
            Ok(FetchState::Verified { size, .. }) => Some(size),
            _ => None,
        }
    }

    /// Waits until bytes after `position` can be read. The last byte of the NAR is held back until
    /// the NAR is verified.
    async fn wait_for_bytes(&mut self, position: u64) -> io::Result<NextBytes> {
        let all_but_the_last = self.size.saturating_sub(1);
        let is_readable = |state: &FetchState| match *state {
            FetchState::Written(count) => count.min(all_but_the_last) > position,
            FetchState::InStore => false,
            FetchState::Verified { .. } | FetchState::Failed => true,
        };
        let state = self.state.wait_for(is_readable).await.map(|state| *state);
        match (state, &self.file) {
            (Ok(FetchState::Written(count)), Some(file)) => {
                Ok(NextBytes::InFile(Arc::clone(file), count.min(all_but_the_last)))
            }
            (Ok(FetchState::Verified { in_file: true, size }), Some(file)) => {
                Ok(NextBytes::InFile(Arc::clone(file), size))
            }
            (Ok(FetchState::Verified { .. }), _) => Ok(NextBytes::Stored),
            _ => Err(io::Error::other("the upstream failed during the transfer")),
        }
    }

    /// Reads the bytes of `range` from the store.
    async fn stored(&self, range: Range<u64>) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let object = self.store.get(&CachePath::Nar(self.name)).await.map_err(io::Error::other)?;
        let object =
            object.ok_or_else(|| io::Error::other("the NAR was removed during the response"))?;
        Ok(object.content.into_stream(range))
    }
}

impl RangeRead for PartialNarReader {
    fn is_download(&self) -> bool {
        // A download has its own connection to the store. These readers share the file of the
        // fetch.
        false
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let pieces = stream::try_unfold((self, range), |(mut reader, range)| async move {
            if range.is_empty() {
                return Ok::<_, io::Error>(None);
            }
            let (bytes, end) = match reader.wait_for_bytes(range.start).await? {
                NextBytes::InFile(file, end) => {
                    let end = end.min(range.end).min(range.start + READ_CHUNK);
                    (file_stream(file, range.start..end), end)
                }
                NextBytes::Stored => (reader.stored(range.clone()).await?, range.end),
            };
            Ok(Some((bytes, (reader, end..range.end))))
        });
        pieces.try_flatten().boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::store::FsStore;

    struct Fixture {
        partial: PartialNar,
        file: File,
        store: Arc<Store>,
        name: NarName,
        _dir: tempfile::TempDir,
    }

    fn fixture(size: Option<u64>, in_file: bool) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<Store> = Arc::new(FsStore::open(dir.path(), 0).unwrap().into());
        let file = tempfile::tempfile().unwrap();
        let name = format!("{}.nar", "0".repeat(52)).parse().unwrap();
        let readable = in_file.then(|| file.try_clone().unwrap());
        let partial = PartialNar::new(name, size, readable, Arc::clone(&store), "x".to_owned());
        Fixture { partial, file, store, name, _dir: dir }
    }

    async fn read(
        partial: &PartialNar,
        range: Range<u64>,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        match partial.object().await.unwrap().content {
            Content::Stream(reader) => reader.read(range),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn readers_get_written_bytes_at_once_and_the_last_byte_only_after_verification() {
        let Fixture { partial, mut file, .. } = fixture(Some(6), true);
        let mut reader = read(&partial, 0..6).await;
        file.write_all(b"abc").unwrap();
        partial.written(3);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "abc");
        file.write_all(b"def").unwrap();
        partial.written(3);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "de");
        partial.finish(Some(6));
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "f");
        assert!(reader.try_next().await.unwrap().is_none());
        let late: Vec<Bytes> = read(&partial, 2..4).await.try_collect().await.unwrap();
        assert_eq!(late.concat(), b"cd");
        assert_eq!(partial.wait_for_end().await, Some(6));
    }

    #[tokio::test]
    async fn a_failed_verification_aborts_all_readers() {
        let Fixture { partial, mut file, .. } = fixture(Some(3), true);
        let early = read(&partial, 0..3).await;
        file.write_all(b"abc").unwrap();
        partial.written(3);
        partial.finish(None);
        assert!(early.try_collect::<Vec<Bytes>>().await.is_err());
        assert!(read(&partial, 0..3).await.try_collect::<Vec<Bytes>>().await.is_err());
        assert_eq!(partial.wait_for_end().await, None);
    }

    #[tokio::test]
    async fn without_a_length_readers_wait_for_the_end() {
        let Fixture { partial, mut file, .. } = fixture(None, true);
        let waiting = partial.object();
        assert!(partial.has_readers());
        assert_eq!(partial.metadata(), None);
        file.write_all(b"abc").unwrap();
        partial.written(3);
        partial.finish(Some(3));
        let object = waiting.await.unwrap();
        assert_eq!(object.metadata.size, 3);
        let Content::Stream(reader) = object.content else { panic!("the NAR is in memory") };
        assert_eq!(reader.read(0..3).try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"abc");

        let Fixture { partial, .. } = fixture(None, true);
        let waiting = partial.object();
        partial.finish(None);
        assert!(waiting.await.is_err());
    }

    #[tokio::test]
    async fn bytes_that_the_copy_lacks_are_read_from_the_store() {
        let Fixture { partial, mut file, store, name, _dir } = fixture(Some(6), true);
        let mut early = read(&partial, 0..6).await;
        file.write_all(b"abc").unwrap();
        partial.written(3);
        assert_eq!(early.try_next().await.unwrap().unwrap(), "abc");
        partial.copy_ended();
        // Has no effect after the end of the copy.
        partial.written(3);
        let late = read(&partial, 1..5).await;
        store.put(&CachePath::Nar(name), "abcdef".into()).await.unwrap();
        partial.finish(Some(6));
        assert_eq!(early.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"def");
        assert_eq!(late.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"bcde");
    }

    #[tokio::test]
    async fn without_a_file_the_nar_is_read_from_the_store() {
        let Fixture { partial, store, name, _dir, .. } = fixture(Some(6), false);
        let reader = read(&partial, 0..6).await;
        partial.written(6);
        store.put(&CachePath::Nar(name), "abcdef".into()).await.unwrap();
        partial.finish(Some(6));
        assert_eq!(reader.try_collect::<Vec<Bytes>>().await.unwrap().concat(), b"abcdef");
    }

    #[tokio::test]
    async fn dropped_readers_are_not_counted() {
        let Fixture { partial, .. } = fixture(Some(3), true);
        let reader = read(&partial, 0..3).await;
        assert!(partial.has_readers());
        drop(reader);
        assert!(!partial.has_readers());
    }
}
