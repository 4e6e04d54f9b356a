//! Streamed uploads.

use std::fs::File;

use super::error::StoreError;
use super::object::Stored;

/// A streamed upload of an object. Dropping it aborts it, and nothing of it remains.
///
/// The methods block, because the caller hashes and unpacks between them: an upload runs on a
/// thread of the blocking pool.
pub trait Upload: Send {
    /// Appends to the object.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Marks the upload as slow or not. A slow upload returns limited resources, such as memory.
    fn set_slow(&mut self, _slow: bool) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the file that contains everything that has been and will be written, from its
    /// beginning, or `None` if there is no such file.
    fn staged(&self) -> Result<Option<File>, StoreError>;

    /// Makes the object durable, then visible under its path, in place of an older one.
    fn commit(self: Box<Self>) -> Result<Stored, StoreError>;
}
