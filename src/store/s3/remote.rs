//! The bytes of an object that is not small.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::GetResult;

use super::bucket::Bucket;
use crate::store::Ranged;

/// An object whose bytes are on their way, or a part of them that has to be asked for.
pub(super) struct Remote {
    bucket: Arc<Bucket>,
    key: String,
    size: u64,
    /// All bytes; only one ever takes them.
    whole: Mutex<BoxStream<'static, io::Result<Bytes>>>,
}

impl Ranged for Remote {
    fn is_download(&self) -> bool {
        true
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let Self { bucket, key, size, whole } = *self;
        if range == (0..size) {
            return whole.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        let part = async move { bucket.read_range(&key, range).await };
        part.into_stream().try_flatten().boxed()
    }
}

impl Remote {
    /// `found` under `key`.
    pub(super) fn new(bucket: Arc<Bucket>, key: String, found: GetResult) -> Self {
        let size = found.meta.size;
        let whole = Mutex::new(found.into_stream().map_err(io::Error::other).boxed());
        Self { bucket, key, size, whole }
    }
}
