//! The body of an upload on the blocking side: a reader that hashes and stages what it reads.

use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};
use std::vec;

use bytes::{Buf, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{BodyError, PutError, ingest};
use crate::metrics::Metrics;
use crate::nix::Sha256Hash;
use crate::store::{Stored, Upload};

/// What the async side says. A channel that closes without `End` is an upload that was given up.
pub enum Message {
    /// The next bytes, as they came.
    Chunks(Vec<Bytes>),
    /// There are no more.
    End,
}

/// The first buffer has at least so much, if there is so much: enough for every magic number.
const BEGINNING: usize = 64;

/// The bytes that a client sends, hashed and, where there is an upload to write to, staged on their
/// way through.
pub struct Incoming {
    messages: mpsc::Receiver<Message>,
    /// Received and not looked at.
    chunks: vec::IntoIter<Bytes>,
    chunk: Bytes,
    upload: Option<Box<dyn Upload>>,
    limit: u64,
    hasher: Sha256,
    length: u64,
    /// How long nothing could be done because nothing had come.
    waited: Duration,
    end: Option<Result<(), PutError>>,
}

/// What has been read when all has.
pub struct Arrived {
    /// SHA-256 of the body.
    pub hash: Sha256Hash,
    /// Its length in bytes.
    pub length: u64,
    /// How long nothing could be done because nothing had come.
    pub waited: Duration,
    /// The staged object.
    pub upload: Option<Box<dyn Upload>>,
}

impl Arrived {
    /// Publishes what was staged.
    pub fn commit(self, metrics: &Metrics) -> Result<Stored, PutError> {
        self.upload.map_or(Ok(Stored::New), |upload| ingest::commit(upload, metrics))
    }
}

impl Incoming {
    /// What comes through `messages`, which may be `limit` bytes.
    pub fn new(
        messages: mpsc::Receiver<Message>,
        upload: Option<Box<dyn Upload>>,
        limit: u64,
    ) -> Self {
        Self {
            messages,
            chunks: Vec::new().into_iter(),
            chunk: Bytes::new(),
            upload,
            limit,
            hasher: Sha256::new(),
            length: 0,
            waited: Duration::ZERO,
            end: None,
        }
    }

    /// Reads on to the end.
    pub fn arrive(mut self) -> Result<Arrived, PutError> {
        loop {
            match self.end {
                None => self.next(),
                Some(Err(error)) => return Err(error),
                Some(Ok(())) => break,
            }
        }
        Ok(Arrived {
            hash: Sha256Hash::new(self.hasher.finalize().into()),
            length: self.length,
            waited: self.waited,
            upload: self.upload,
        })
    }

    /// Waits for the next chunk, hashes it and stages it.
    fn next(&mut self) {
        let Some(mut chunk) = self.receive() else {
            return;
        };
        if self.length == 0 && chunk.len() < BEGINNING {
            let mut beginning = BytesMut::from(chunk.as_ref());
            while beginning.len() < BEGINNING {
                match self.receive() {
                    Some(more) => beginning.extend_from_slice(&more),
                    None => break,
                }
            }
            chunk = beginning.freeze();
        }
        self.length += chunk.len() as u64;
        if self.length > self.limit {
            self.end = Some(Err(PutError::TooLarge { limit: self.limit }));
            return;
        }
        self.hasher.update(&chunk);
        if let Some(upload) = &mut self.upload
            && let Err(error) = upload.write(&chunk)
        {
            self.end = Some(Err(error.into()));
        }
        self.chunk = chunk;
    }

    fn receive(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.chunks.next() {
                return Some(chunk);
            }
            let begun = Instant::now();
            let message = self.messages.blocking_recv();
            self.waited += begun.elapsed();
            match message {
                Some(Message::Chunks(chunks)) => self.chunks = chunks.into_iter(),
                Some(Message::End) => {
                    self.end = Some(Ok(()));
                    return None;
                }
                // Nobody waits for the result any more.
                None => {
                    let why = BodyError::CutShort("the upload was given up".into());
                    self.end = Some(Err(why.into()));
                    return None;
                }
            }
        }
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && self.end.is_none() {
            self.next();
        }
        match self.end {
            // What a decoder makes of it does not matter: `arrive` knows what happened.
            Some(Err(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(&self.chunk),
        }
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
