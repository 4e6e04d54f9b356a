//! Collects a whole body, and decodes it by its `Content-Encoding`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;

use super::error::{BodyError, PutError};
use super::feed::Feed;
use super::pool::on_blocking_pool;
use super::receive::check_length;
use crate::nix::{CachePath, Compression, narinfo};
use crate::store::{Store, StoreError};
use crate::unpack::{self, Allowance, DecodeBudget, UnpackError};

/// Maximum length in bytes of a body that is collected in memory. A NAR or side file up to this
/// length is stored in one step.
pub(crate) const MEMORY_BODY_LIMIT: u64 = 64 * 1024;

/// A complete body that is not stored yet.
pub(crate) enum Collected {
    InMemory(Bytes),
    /// In an unnamed file, with its length in bytes.
    OnDisk(Arc<File>, u64),
}

impl Collected {
    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::InMemory(bytes) => bytes.len() as u64,
            Self::OnDisk(_, length) => *length,
        }
    }

    /// Returns a reader from the beginning.
    pub(crate) fn reader(&self) -> Box<dyn BufRead> {
        match self {
            Self::InMemory(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Self::OnDisk(file, length) => Box::new(read_at(file, *length)),
        }
    }

    /// Reads the whole body into memory.
    pub(crate) async fn into_bytes(self, path: &CachePath) -> Result<Bytes, PutError> {
        if let Self::InMemory(bytes) = self {
            return Ok(bytes);
        }
        let key = path.key();
        on_blocking_pool(move || {
            let mut bytes = Vec::with_capacity(self.len() as usize);
            let read = self.reader().read_to_end(&mut bytes);
            read.map_err(|source| PutError::Read { key, source })?;
            Ok(bytes.into())
        })
        .await
    }
}

/// Returns a reader of the first `length` bytes of a file. It does not move the position of the file,
/// so other readers are independent of it.
pub(crate) fn read_at(file: &Arc<File>, length: u64) -> BufReader<impl Read + use<>> {
    struct ReadAt(Arc<File>, u64);
    impl Read for ReadAt {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read_at(buffer, self.1)?;
            self.1 += count as u64;
            Ok(count)
        }
    }
    BufReader::with_capacity(MEMORY_BODY_LIMIT as usize, ReadAt(Arc::clone(file), 0).take(length))
}

/// Collects a whole body of at most `limit` bytes: up to [`MEMORY_BODY_LIMIT`] in memory, above it
/// in a file, because slow clients would occupy memory for a long time.
pub(crate) async fn collect(
    store: &Arc<Store>,
    path: &CachePath,
    declared: Option<u64>,
    limit: u64,
    mut feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
) -> Result<Collected, PutError> {
    if declared.is_some_and(|length| length > limit) {
        return Err(PutError::TooLarge { limit });
    }
    let mut whole = BytesMut::new();
    let mut file: Option<Arc<File>> = None;
    let mut length = 0;
    while let Some(batch) = feed.next().await? {
        length += batch.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if length > limit {
            return Err(PutError::TooLarge { limit });
        }
        batch.iter().for_each(|chunk| whole.extend_from_slice(chunk));
        if length > MEMORY_BODY_LIMIT {
            let (store, path, bytes) = (Arc::clone(store), path.clone(), whole.split().freeze());
            let started = file.take();
            file = Some(
                on_blocking_pool(move || spool(&store, &path, declared, started, &bytes)).await?,
            );
        }
    }
    check_length(declared, length)?;
    Ok(match file {
        Some(file) => Collected::OnDisk(file, length),
        None => Collected::InMemory(whole.freeze()),
    })
}

/// Appends to an unnamed file, which is created if `started` is `None`.
fn spool(
    store: &Arc<Store>,
    path: &CachePath,
    declared: Option<u64>,
    started: Option<Arc<File>>,
    bytes: &[u8],
) -> Result<Arc<File>, PutError> {
    let file = match started {
        Some(file) => file,
        None => Arc::new(store.temporary_file(path, declared)?),
    };
    let written = (&*file).write_all(bytes);
    written.map_err(|error| StoreError::new("staging", &path.key(), error))?;
    Ok(file)
}

/// Decodes a narinfo of at most [`narinfo::MAX_SIZE`] decoded bytes.
pub(crate) async fn decode(
    budget: &DecodeBudget,
    encoding: Compression,
    bytes: Bytes,
) -> Result<Bytes, PutError> {
    if encoding == Compression::None {
        return Ok(bytes);
    }
    decode_at_rest(budget, Allowance::USUAL, move |allowance| {
        let mut decoded = Vec::new();
        encoding_decoder(encoding, bytes.as_ref(), allowance)?
            .take(narinfo::MAX_SIZE + 1)
            .read_to_end(&mut decoded)
            .map_err(|source| encoding_error(encoding, source, allowance))?;
        if decoded.len() as u64 > narinfo::MAX_SIZE {
            return Err(PutError::TooLarge { limit: narinfo::MAX_SIZE });
        }
        Ok(Bytes::from(decoded))
    })
    .await
}

/// Runs `attempt` on the blocking pool, with a permit for its allowance. If it fails because it needs a
/// larger allowance, it is run again with that.
pub(crate) async fn decode_at_rest<T: Send + 'static>(
    budget: &DecodeBudget,
    mut allowance: Allowance,
    attempt: impl Fn(Allowance) -> Result<T, PutError> + Send + Sync + 'static,
) -> Result<T, PutError> {
    let attempt = Arc::new(attempt);
    loop {
        let (permit, attempt) = (budget.at_rest(allowance).await, Arc::clone(&attempt));
        let done = on_blocking_pool(move || {
            let _permit = permit;
            attempt(allowance)
        });
        match done.await {
            Err(PutError::Unpack(UnpackError::Exceeded(more))) => allowance = more,
            done => return done,
        }
    }
}

pub(crate) fn encoding_decoder<'a>(
    encoding: Compression,
    input: impl BufRead + 'a,
    allowance: Allowance,
) -> Result<Box<dyn Read + 'a>, PutError> {
    unpack::decoder(encoding, input, allowance).map_err(|error| match error {
        Some(source) => encoding_error(encoding, source, allowance),
        None => PutError::NoDecoder(encoding),
    })
}

pub(crate) fn encoding_error(
    encoding: Compression,
    source: io::Error,
    allowance: Allowance,
) -> PutError {
    match unpack::more_memory(&source, allowance) {
        Some(more) => UnpackError::Exceeded(more).into(),
        None => PutError::Encoding { encoding, source },
    }
}
