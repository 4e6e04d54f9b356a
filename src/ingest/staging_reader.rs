//! The body of an upload as a reader, for a decoder that runs during the transfer.

use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};
use std::vec;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::error::PutError;
use super::stage::Stage;
use crate::unpack::{UnpackError, Unpacked};

/// A message of the async side. If the channel closes without `End`, the body is slow or the upload
/// was aborted: the decoder stops, and the received bytes stay staged.
pub(crate) enum Message {
    /// The next chunks.
    Chunks(Vec<Bytes>),
    /// The body is complete.
    End,
}

/// A reader of a body; each chunk is staged before the decoder gets it.
pub(crate) struct StagingReader {
    messages: mpsc::Receiver<Message>,
    /// Chunks that were received, and are neither staged nor read.
    chunks: vec::IntoIter<Bytes>,
    /// The staged chunk that is being read.
    chunk: Bytes,
    stage: Stage,
    started: Instant,
    waited: Duration,
    end: Option<End>,
}

/// The reason why no more chunks arrive.
enum End {
    /// The body is complete.
    Whole,
    /// The channel was closed before the end.
    Interrupted,
    /// Staging failed.
    Failed(PutError),
}

impl StagingReader {
    /// Creates a reader of a body whose first bytes are `beginning`.
    pub(crate) fn new(beginning: Bytes, messages: mpsc::Receiver<Message>, stage: Stage) -> Self {
        Self {
            messages,
            chunks: vec![beginning].into_iter(),
            chunk: Bytes::new(),
            stage,
            started: Instant::now(),
            waited: Duration::ZERO,
            end: None,
        }
    }

    /// Stages the bytes that were received but not read. Returns the stage and the result of unpacking, or
    /// `None` for it if the decoder did not get all its input.
    pub(crate) fn stop(
        mut self,
        unpacked: Result<Unpacked, UnpackError>,
    ) -> Result<(Stage, Option<Result<Unpacked, UnpackError>>), PutError> {
        let busy = self.started.elapsed().saturating_sub(self.waited);
        // This includes the time that staging has counted.
        self.stage.set_busy(busy);
        self.messages.close();
        let interrupted = match self.end {
            Some(End::Failed(error)) => return Err(error),
            Some(End::Interrupted) => true,
            Some(End::Whole) | None => false,
        };
        self.stage.push(self.chunks.as_slice())?;
        // A message that was being sent when the channel was closed still arrives.
        while let Some(message) = self.messages.blocking_recv() {
            if let Message::Chunks(chunks) = message {
                self.stage.push(&chunks)?;
            }
        }
        Ok((self.stage, (!interrupted).then_some(unpacked)))
    }

    /// Waits for the next chunk and stages it.
    fn next(&mut self) {
        let Some(chunk) = self.receive() else {
            return;
        };
        if let Err(error) = self.stage.push(std::slice::from_ref(&chunk)) {
            self.end = Some(End::Failed(error));
        }
        self.chunk = chunk;
    }

    fn receive(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.chunks.next() {
                return Some(chunk);
            }
            let started = Instant::now();
            let message = self.messages.blocking_recv();
            self.waited += started.elapsed();
            match message {
                Some(Message::Chunks(chunks)) => self.chunks = chunks.into_iter(),
                Some(Message::End) => {
                    self.end = Some(End::Whole);
                    return None;
                }
                None => {
                    self.end = Some(End::Interrupted);
                    return None;
                }
            }
        }
    }
}

impl BufRead for StagingReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && self.end.is_none() {
            self.next();
        }
        match self.end {
            // `stop` returns the real error, whatever the decoder reports.
            Some(End::Interrupted | End::Failed(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(End::Whole) | None => Ok(&self.chunk),
        }
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }
}

impl Read for StagingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
