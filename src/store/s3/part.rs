//! The memory of a part of an upload.

use std::io;

use bytes::Bytes;
use memmap2::MmapMut;

/// A piece of memory that is filled once. It is the system's own and goes back to it: what an
/// allocator gets back in megabytes from many threads it keeps, and not all of it is used again.
pub(super) struct Part {
    memory: MmapMut,
    length: usize,
}

impl Part {
    /// Memory for so many bytes, of which only those count that are filled.
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
