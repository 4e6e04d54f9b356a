//! The parts of uploads: their memory, and their number at a time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The size of a part: the smallest that servers take, because each upload holds some of them.
pub(super) const PART: u64 = 5 << 20;

/// How many parts of [`PART`] are in memory at most, for all uploads together: 320 MiB. One upload
/// more waits.
const IN_MEMORY: usize = 64;

/// The maximum number of parts that all uploads together send at a time: each has its share of the
/// bandwidth, and a limited time.
const ON_THE_LINE: usize = 16;

/// The budget of all uploads together. A clone is the same budget.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    memory: Arc<Semaphore>,
    line: Arc<Semaphore>,
}

/// A share of the budget, held until it is dropped.
pub(super) type Permit = Option<OwnedSemaphorePermit>;

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(IN_MEMORY)),
            line: Arc::new(Semaphore::new(ON_THE_LINE)),
        }
    }

    /// Waits for the right to keep a part of this size in memory.
    pub(super) async fn memory_for(&self, size: u64) -> Permit {
        let permits = size.div_ceil(PART).min(IN_MEMORY as u64) as u32;
        // The semaphore is never closed.
        Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()
    }

    /// Waits for the right to send a part.
    pub(super) async fn line(&self) -> Permit {
        Arc::clone(&self.line).acquire_owned().await.ok()
    }
}

/// A block of memory that is filled once. It is mapped from the system and returned to it: an
/// allocator keeps the megabytes that many threads free, and does not reuse all of them.
pub(super) struct Part {
    memory: MmapMut,
    length: usize,
}

impl Part {
    /// Maps memory for this many bytes. Only filled bytes take memory.
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        // None at all cannot be had.
        Ok(Self { memory: MmapMut::map_anon(capacity.max(1))?, length: 0 })
    }

    /// Takes from the beginning of `bytes` what there is room for, and returns how many that were.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = &mut self.memory[self.length..];
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.length += count;
        count
    }

    /// Returns the filled part.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[..self.length]
    }

    pub(super) fn is_full(&self) -> bool {
        self.length == self.memory.len()
    }
}

impl From<Part> for Bytes {
    fn from(part: Part) -> Self {
        let length = part.length;
        Self::from_owner(part.memory).slice(..length)
    }
}
