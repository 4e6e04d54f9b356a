//! A NAR that is being fetched, for everybody who waits for it.
//!
//! Readers follow the file as it grows, and the last byte is held back until the whole of it has
//! been checked: so what turns out to be wrong is broken off for all of them, and for none of them
//! has it ended as if it were complete.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use crate::nix::cache_path::NarName;
use crate::store::fs::read::read_chunk;
use crate::store::{Content, Metadata, Object, Ranged};

/// How much a reader takes at a time, at most.
const CHUNK: u64 = 256 * 1024;

/// A file that grows.
pub(super) struct Growing {
    name: NarName,
    size: u64,
    begun: SystemTime,
    file: Arc<File>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are there.
    Written(u64),
    /// All are, and they are right.
    Right,
    /// They will never be, or they are wrong.
    Failed,
}

impl Growing {
    pub(super) fn new(name: NarName, size: u64, file: File) -> Self {
        let state = watch::Sender::new(State::Written(0));
        Self { name, size, begun: SystemTime::now(), file: Arc::new(file), state }
    }

    pub(super) fn written(&self, count: u64) {
        self.state.send_modify(|state| {
            if let State::Written(before) = state {
                *before += count;
            }
        });
    }

    pub(super) fn ended(&self, right: bool) {
        self.state.send_replace(if right { State::Right } else { State::Failed });
    }

    /// Whether anybody reads it.
    pub(super) fn is_read(&self) -> bool {
        self.state.receiver_count() > 0
    }

    /// Returns when it has ended; whether it is right.
    pub(super) async fn end(&self) -> bool {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| !matches!(state, State::Written(_))).await;
        ended.is_ok_and(|state| *state == State::Right)
    }

    /// What is known of it.
    pub(super) fn metadata(&self) -> Metadata {
        metadata(self.name, self.size, self.begun)
    }

    /// It, as an object of a store.
    pub(super) fn object(&self) -> Object {
        let metadata = self.metadata();
        let reader =
            Reader { file: Arc::clone(&self.file), size: self.size, state: self.state.subscribe() };
        Object { metadata, content: Content::Stream(Box::new(reader)) }
    }
}

/// What there is to know about a NAR that is not here yet.
pub(super) fn metadata(name: NarName, size: u64, now: SystemTime) -> Metadata {
    Metadata { size, modified: now, used: now, etag: format!("\"{name}\"").into() }
}

struct Reader {
    file: Arc<File>,
    size: u64,
    state: watch::Receiver<State>,
}

impl Reader {
    /// Waits until there is something after `at`, and says up to where it can be read.
    async fn available(&mut self, at: u64) -> io::Result<u64> {
        let all_but_the_last = self.size.saturating_sub(1);
        let readable = |state: &State| match *state {
            State::Written(count) => Some(count.min(all_but_the_last)),
            State::Right => Some(self.size),
            State::Failed => None,
        };
        let changed = self.state.wait_for(|state| readable(state).is_none_or(|end| end > at)).await;
        let end = changed.ok().and_then(|state| readable(&state));
        end.ok_or_else(|| io::Error::other("the upstream failed in the middle of it"))
    }
}

impl Ranged for Reader {
    fn is_download(&self) -> bool {
        // All readers share the file, and the one that fetches it has the connection.
        false
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        stream::try_unfold((self, range), |(mut reader, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = reader.available(range.start).await?.min(range.end);
            let len = CHUNK.min(end - range.start);
            let chunk = read_chunk(Arc::clone(&reader.file), range.start, len as usize).await?;
            Ok(Some((chunk, (reader, range.start + len..range.end))))
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures_util::TryStreamExt;

    use super::*;

    fn growing(size: u64) -> (Growing, File) {
        let file = tempfile::tempfile().unwrap();
        let name = format!("{}.nar", "0".repeat(52)).parse().unwrap();
        (Growing::new(name, size, file.try_clone().unwrap()), file)
    }

    fn read(growing: &Growing, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        match growing.object().content {
            Content::Stream(reader) => reader.read(range),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_there_is_read_before_the_rest_and_the_last_byte_at_the_end() {
        let (growing, mut file) = growing(6);
        let mut reader = read(&growing, 0..6);
        file.write_all(b"abc").unwrap();
        growing.written(3);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "abc");
        file.write_all(b"def").unwrap();
        growing.written(3);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "de");
        growing.ended(true);
        assert_eq!(reader.try_next().await.unwrap().unwrap(), "f");
        assert!(reader.try_next().await.unwrap().is_none());
        let late: Vec<Bytes> = read(&growing, 2..4).try_collect().await.unwrap();
        assert_eq!(late.concat(), b"cd");
        assert!(growing.end().await);
    }

    #[tokio::test]
    async fn what_is_wrong_is_broken_off_for_everybody() {
        let (growing, mut file) = growing(3);
        let early = read(&growing, 0..3);
        file.write_all(b"abc").unwrap();
        growing.written(3);
        growing.ended(false);
        assert!(early.try_collect::<Vec<Bytes>>().await.is_err());
        assert!(read(&growing, 0..3).try_collect::<Vec<Bytes>>().await.is_err());
        assert!(!growing.end().await);
    }

    #[tokio::test]
    async fn whoever_reads_it_is_counted() {
        let (growing, _file) = growing(3);
        let reader = read(&growing, 0..3);
        assert!(growing.is_read());
        drop(reader);
        assert!(!growing.is_read());
    }
}
