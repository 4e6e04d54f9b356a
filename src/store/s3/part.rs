//! The parts of uploads, and the limits of their memory and of their number in transit.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The size of a part in bytes: the minimum that servers accept, because each upload has several
/// parts in memory.
pub(super) const MIN_PART_SIZE: u64 = 5 << 20;

/// The maximum number of parts of [`MIN_PART_SIZE`] in memory, for all uploads together: 320 MiB.
/// Other uploads wait.
const PARTS_IN_MEMORY: usize = 64;

/// The maximum number of parts that all uploads together send at a time: each has its share of the
/// bandwidth, and a limited time.
const PARTS_IN_TRANSIT: usize = 16;

/// The budget of all uploads together. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct UploadBudget {
    memory: Arc<Semaphore>,
    transit: Arc<Semaphore>,
}

/// A share of the budget, held until it is dropped.
pub(super) type Permit = Option<OwnedSemaphorePermit>;

impl UploadBudget {
    pub(super) fn new() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(PARTS_IN_MEMORY)),
            transit: Arc::new(Semaphore::new(PARTS_IN_TRANSIT)),
        }
    }

    /// Waits for a permit to keep a part of this size in memory.
    pub(super) async fn memory_permit(&self, size: u64) -> Permit {
        let permits = size.div_ceil(MIN_PART_SIZE).min(PARTS_IN_MEMORY as u64) as u32;
        // The semaphore is never closed.
        Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()
    }

    /// Waits for a permit to send a part.
    pub(super) async fn transit_permit(&self) -> Permit {
        Arc::clone(&self.transit).acquire_owned().await.ok()
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
        // An empty map is not possible.
        Ok(Self { memory: MmapMut::map_anon(capacity.max(1))?, length: 0 })
    }

    /// Appends the beginning of `bytes`, as much as fits, and returns the number of appended bytes.
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
