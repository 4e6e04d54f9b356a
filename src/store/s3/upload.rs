//! An object on its way into the bucket: small ones in one request, others in parts while they
//! come. Nothing is visible before the last request.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::bucket::{Bucket, failed};
use crate::nix::CachePath;
use crate::store::{StoreError, Stored, Turns, Upload};

/// The size of a part: the smallest that servers take, because each upload holds two of them.
pub(super) const PART: u64 = 5 << 20;

/// How many parts one object may have (Amazon's "multipart upload limits").
const PARTS: u64 = 10_000;

/// The size of a part where the object's is not known: so it may have 160 GB.
const UNKNOWN_PART: u64 = 16 << 20;

/// How many parts of [`PART`] are in memory at most, for all uploads together: 320 MiB. One upload
/// more waits.
pub(super) const PARTS_IN_MEMORY: usize = 64;

/// An upload.
pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    budget: Arc<Semaphore>,
    turns: Arc<Turns>,
    runtime: Handle,
    key: String,
    content_type: &'static str,
    part_size: u64,
    /// The part that is being filled.
    part: Part,
    /// The upload in parts, if one was begun.
    parts: Option<Box<dyn MultipartUpload>>,
    /// The part that is being sent.
    sending: Option<JoinHandle<object_store::Result<()>>>,
    /// A copy for readers, if there are any.
    copy: Option<File>,
    written: u64,
}

#[derive(Default)]
struct Part {
    chunks: Vec<Bytes>,
    length: u64,
    /// The right to be in memory.
    permit: Option<OwnedSemaphorePermit>,
}

impl S3Upload {
    /// To be called where the runtime is known.
    pub(super) fn new(
        bucket: Arc<Bucket>,
        budget: Arc<Semaphore>,
        turns: Arc<Turns>,
        runtime: Handle,
        path: &CachePath,
        size: Option<u64>,
    ) -> Self {
        let part_size = size.map_or(UNKNOWN_PART, |size| PART.max(size.div_ceil(PARTS)));
        Self {
            bucket,
            budget,
            turns,
            runtime,
            key: path.key(),
            content_type: path.content_type(),
            part_size,
            part: Part::default(),
            parts: None,
            sending: None,
            copy: None,
            written: 0,
        }
    }

    /// Waits for the right to keep a part of an upload in memory.
    fn admit_part(&mut self) {
        let permits = self.part_size.div_ceil(PART).min(PARTS_IN_MEMORY as u64) as u32;
        let permit = Arc::clone(&self.budget).acquire_many_owned(permits);
        // Nobody closes the semaphore.
        self.part.permit = self.runtime.block_on(permit).ok();
    }

    /// Hands the part over, when the one before has gone.
    fn send(&mut self) -> Result<(), StoreError> {
        self.wait_for_part()?;
        let Part { chunks, permit, .. } = std::mem::take(&mut self.part);
        if self.parts.is_none() {
            let begun = self.bucket.begin(&self.key, self.content_type);
            self.parts = Some(self.runtime.block_on(begun)?);
        }
        let parts = self.parts.as_mut().expect("it was begun just now");
        let sending = parts.put_part(PutPayload::from_iter(chunks));
        self.sending = Some(self.runtime.spawn(async move {
            let _permit = permit;
            sending.await
        }));
        Ok(())
    }

    fn wait_for_part(&mut self) -> Result<(), StoreError> {
        let Some(sending) = self.sending.take() else {
            return Ok(());
        };
        let sent = self.runtime.block_on(sending).unwrap_or_else(|error| Err(error.into()));
        sent.map_err(failed("storing a part of", &self.key))
    }

    fn publish(&mut self) -> Result<(), StoreError> {
        if self.parts.is_none() {
            let payload = PutPayload::from_iter(std::mem::take(&mut self.part.chunks));
            let put = self.bucket.put(&self.key, payload, self.content_type);
            return self.runtime.block_on(put);
        }
        if self.part.length > 0 {
            self.send()?;
        }
        self.wait_for_part()?;
        let mut parts = self.parts.take().expect("it was looked at above");
        let completed = self.runtime.block_on(parts.complete());
        if completed.is_err() {
            self.parts = Some(parts);
        }
        completed.map(drop).map_err(failed("completing", &self.key))
    }
}

impl Upload for S3Upload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(copy) = &mut self.copy {
            let copied = copy.write_all(bytes);
            copied.map_err(|error| StoreError::new("keeping a copy of", &self.key, error))?;
        }
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.part.permit.is_none() {
                self.admit_part();
            }
            let room = (self.part_size - self.part.length).min(bytes.len() as u64) as usize;
            let (chunk, rest) = bytes.split_at(room);
            self.part.chunks.push(Bytes::copy_from_slice(chunk));
            self.part.length += room as u64;
            bytes = rest;
            if self.part.length == self.part_size {
                self.send()?;
            }
        }
        Ok(())
    }

    fn reader(&mut self) -> Result<File, StoreError> {
        let failed = |error| StoreError::new("keeping a copy of", &self.key, error);
        let copy = match &self.copy {
            Some(copy) => copy,
            None if self.written > 0 => {
                return Err(failed(io::Error::other("some of it has already been sent")));
            }
            None => self.copy.insert(tempfile::tempfile().map_err(failed)?),
        };
        copy.try_clone().map_err(failed)
    }

    fn commit(mut self: Box<Self>) -> Result<Stored, StoreError> {
        let turns = Arc::clone(&self.turns);
        let _turn = self.runtime.block_on(turns.take(&self.key));
        let older = self.runtime.block_on(self.bucket.head(&self.key))?;
        self.publish()?;
        Ok(if older.is_some() { Stored::Again } else { Stored::New })
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        let (sending, key) = (self.sending.take(), std::mem::take(&mut self.key));
        self.runtime.spawn(async move {
            // A part that comes after the end would stay.
            if let Some(sending) = sending {
                let _ = sending.await;
            }
            if let Err(error) = parts.abort().await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "parts of {key} stay until they are swept away");
            }
        });
    }
}
