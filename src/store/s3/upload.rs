//! A streamed upload into the bucket: small objects in one request, others in parts during the
//! transfer. Nothing is visible before the last request.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::MultipartUpload;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tracing::warn;

use super::bucket::{BucketClient, failed};
use super::part::{MIN_PART_SIZE, Part, Permit, UploadBudget};
use super::uses::S3Uses;
use crate::logging::with_causes;
use crate::nix::CachePath;
use crate::store::{KeyedLocks, StoreError, Stored, Upload};

/// The maximum number of parts of an object (Amazon's "multipart upload limits").
const MAX_PARTS: u64 = 10_000;

/// The size of a part of an object of unknown size, in bytes. So the object may have 160 GB.
const UNKNOWN_SIZE_PART_SIZE: u64 = 16 << 20;

/// The number of bytes that are read at a time from the temporary file of a part.
const SPILL_BUFFER: usize = 64 * 1024;

/// The maximum number of parts of one upload that are sent at a time. With only one, the server
/// would be idle between parts.
const UPLOAD_PARTS_IN_TRANSIT: usize = 3;

/// A streamed upload into the bucket.
pub(crate) struct S3Upload {
    bucket: Arc<BucketClient>,
    budget: UploadBudget,
    locks: Arc<KeyedLocks>,
    uses: Arc<S3Uses>,
    runtime: Handle,
    key: String,
    content_type: &'static str,
    part_size: u64,
    /// The part that is being filled, and its permit to be in memory.
    part: Option<(Part, Permit)>,
    /// The temporary file that holds the part of a slow upload instead, and the number of bytes in
    /// it.
    spilled: Option<(File, u64)>,
    /// Whether the upload is slow, so that its part goes to a temporary file.
    is_slow: bool,
    /// The multipart upload, if it was started.
    parts: Option<Box<dyn MultipartUpload>>,
    /// The parts that are being sent.
    sending: JoinSet<object_store::Result<()>>,
    /// The size of the object, if it is known.
    size: Option<u64>,
    written: u64,
}

impl S3Upload {
    /// Creates an upload. Nothing is sent before the first part is full.
    pub(super) fn new(
        bucket: Arc<BucketClient>,
        budget: UploadBudget,
        locks: Arc<KeyedLocks>,
        uses: Arc<S3Uses>,
        runtime: Handle,
        path: &CachePath,
        size: Option<u64>,
    ) -> Self {
        let part_size =
            size.map_or(UNKNOWN_SIZE_PART_SIZE, |size| MIN_PART_SIZE.max(size.div_ceil(MAX_PARTS)));
        Self {
            bucket,
            budget,
            locks,
            uses,
            runtime,
            key: path.key(),
            content_type: path.content_type(),
            part_size,
            part: None,
            spilled: None,
            is_slow: false,
            parts: None,
            sending: JoinSet::new(),
            size,
            written: 0,
        }
    }

    /// Returns the part that is being filled, or waits for memory for a new one.
    fn part(&mut self) -> Result<&mut Part, StoreError> {
        let (part, _) = match self.part.take() {
            Some(part) => self.part.insert(part),
            None => {
                let permit = self.runtime.block_on(self.budget.memory_permit(self.part_size));
                let capacity = match self.size.map(|size| size.saturating_sub(self.written)) {
                    Some(left) if left > 0 => left.min(self.part_size),
                    _ => self.part_size,
                };
                let part = Part::new(capacity as usize).map_err(|error| {
                    StoreError::new("allocating memory for a part of", &self.key, error)
                })?;
                self.part.insert((part, permit))
            }
        };
        Ok(part)
    }

    /// Appends the beginning of `bytes` to the part in the temporary file, as much as fits, and
    /// returns the number of appended bytes.
    fn spill(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (file, length) = match &mut self.spilled {
            Some(spilled) => spilled,
            None => self.spilled.insert((tempfile::tempfile()?, 0)),
        };
        let room = usize::try_from(self.part_size - *length).unwrap_or(usize::MAX);
        let count = room.min(bytes.len());
        file.write_all(&bytes[..count])?;
        *length += count as u64;
        Ok(count)
    }

    /// Keeps a slow upload in memory, because there is no temporary file for its parts.
    fn stay_in_memory(&mut self, error: &io::Error) {
        let key = &self.key;
        warn!(%error, key, "temporary files cannot be written; a slow upload stays in memory");
        self.is_slow = false;
    }

    /// Moves the part from the temporary file back into memory.
    fn unspill(&mut self) -> Result<(), StoreError> {
        let Some((file, mut length)) = self.spilled.take() else {
            return Ok(());
        };
        // These bytes are already counted, and are counted again below.
        self.written -= length;
        let mut buffer = vec![0; SPILL_BUFFER];
        let mut at = 0;
        while length > 0 {
            let some = &mut buffer[..SPILL_BUFFER.min(length as usize)];
            file.read_exact_at(some, at)
                .map_err(|error| StoreError::new("reading a part of", &self.key, error))?;
            if self.part.as_ref().is_some_and(|(part, _)| part.is_full()) {
                self.send()?;
            }
            let count = self.part()?.fill(some) as u64;
            self.written += count;
            at += count;
            length -= count;
        }
        Ok(())
    }

    /// Starts to send the part, when fewer than [`UPLOAD_PARTS_IN_TRANSIT`] parts are being sent.
    fn send(&mut self) -> Result<(), StoreError> {
        self.wait_until_sending(UPLOAD_PARTS_IN_TRANSIT - 1)?;
        let Some((part, permit)) = self.part.take() else {
            return Ok(());
        };
        if self.parts.is_none() {
            // This request has a shorter timeout than the next one, so it finds out sooner that a
            // server does not respond.
            self.runtime.block_on(self.bucket.is_probably_present(&self.key))?;
            let started = self.bucket.start_multipart(&self.key, self.content_type);
            self.parts = Some(self.runtime.block_on(started)?);
        }
        let parts = self.parts.as_mut().expect("it was started just now");
        let sending = parts.put_part(Bytes::from(part).into());
        let budget = self.budget.clone();
        let sending = async move {
            let (_memory, _transit) = (permit, budget.transit_permit().await);
            sending.await
        };
        self.sending.spawn_on(sending, &self.runtime);
        Ok(())
    }

    /// Waits until at most this many parts are being sent.
    fn wait_until_sending(&mut self, most: usize) -> Result<(), StoreError> {
        while self.sending.len() > most {
            let Some(sent) = self.runtime.block_on(self.sending.join_next()) else { break };
            let sent = sent.unwrap_or_else(|error| Err(error.into()));
            sent.map_err(failed("storing a part of", &self.key))?;
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), StoreError> {
        self.unspill()?;
        if self.parts.is_none() {
            // An empty object has no part.
            let (part, _permit) = self.part.take().unzip();
            let bytes = part.map_or_else(Bytes::new, Bytes::from);
            let put = self.bucket.upload(&self.key, bytes, self.content_type);
            return self.runtime.block_on(put);
        }
        self.send()?;
        self.wait_until_sending(0)?;
        let mut parts = self.parts.take().expect("it was checked above");
        let completed = self.runtime.block_on(parts.complete());
        if completed.is_err() {
            self.parts = Some(parts);
        }
        completed.map(drop).map_err(failed("completing", &self.key))
    }
}

impl Upload for S3Upload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            // More bytes follow, so the full part is not the last one, which `publish` sends.
            if self.spilled.as_ref().is_some_and(|(_, length)| *length == self.part_size) {
                self.unspill()?;
            }
            if self.part.as_ref().is_some_and(|(part, _)| part.is_full()) {
                self.send()?;
            }
            let in_a_file = self.spilled.is_some() || (self.is_slow && self.part.is_none());
            let spilled = if in_a_file { Some(self.spill(bytes)) } else { None };
            let count = match spilled {
                Some(Ok(count)) => count,
                Some(Err(error)) => {
                    self.stay_in_memory(&error);
                    self.unspill()?;
                    self.part()?.fill(bytes)
                }
                None => self.part()?.fill(bytes),
            };
            self.written += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn set_slow(&mut self, slow: bool) -> Result<(), StoreError> {
        self.is_slow = slow;
        if slow
            && let Some((part, permit)) = self.part.take()
            && let Err(error) = self.spill(part.bytes())
        {
            self.stay_in_memory(&error);
            self.spilled = None;
            self.part = Some((part, permit));
        }
        Ok(())
    }

    fn staged(&self) -> Result<Option<File>, StoreError> {
        // The beginning of the object may have been sent already.
        Ok(None)
    }

    fn commit(mut self: Box<Self>) -> Result<Stored, StoreError> {
        let locks = Arc::clone(&self.locks);
        let _lock = self.runtime.block_on(locks.take(&self.key));
        let older = self.runtime.block_on(self.bucket.is_probably_present(&self.key))?;
        if older {
            // A running collection must not remove the object.
            self.runtime.block_on(self.uses.mark(self.key.clone()))?;
        }
        self.publish()?;
        Ok(if older { Stored::Replaced } else { Stored::Created })
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        let (mut sending, key) = (std::mem::take(&mut self.sending), std::mem::take(&mut self.key));
        self.runtime.spawn(async move {
            // A part that arrives after the abort would be kept by the server.
            while sending.join_next().await.is_some() {}
            if let Err(error) = parts.abort().await {
                warn!(error = %with_causes(&error), key, "cannot abort a multipart upload; its parts stay for now");
            }
        });
    }
}
