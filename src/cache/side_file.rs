//! Side files: listings, logs, realisations, build traces and links to debug symbols. They are
//! stored unchecked.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use super::state::Cache;
use crate::ingest::{
    BodyError, Feed, MEMORY_BODY_LIMIT, PutError, Stage, check_length, collect, commit,
    decode_at_rest, encoding_decoder, encoding_error, on_blocking_pool, receive, start_upload,
};
use crate::nix::{CachePath, Compression};
use crate::store::Stored;
use crate::unpack::{self, Allowance, BOMB_RATIO};

/// The maximum size of a decoded side file, in bytes: JSON, and a log. The largest logs have some
/// 100 MB.
const DECODED_JSON_LIMIT: u64 = 64 << 20;
const DECODED_LOG_LIMIT: u64 = 1 << 30;

/// A decoded side file above this size may have at most [`BOMB_RATIO`] times its encoded size.
const DECODED_FLOOR: u64 = 16 << 20;

impl Cache {
    /// Stores a side file of any size while it streams in. Returns also its stored length, in bytes.
    pub(crate) async fn put_side_file(
        &self,
        path: &CachePath,
        encoding: Compression,
        declared: Option<u64>,
        limit: u64,
        feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<(Stored, u64), PutError> {
        let metrics = Arc::clone(&self.metrics);
        if encoding != Compression::None {
            return self.put_encoded_side_file(path, encoding, declared, limit, feed).await;
        }
        if declared.is_some_and(|length| length <= MEMORY_BODY_LIMIT) {
            let bytes = collect(&self.store, path, declared, MEMORY_BODY_LIMIT, feed).await?;
            let bytes = bytes.into_bytes(path).await?;
            let size = bytes.len() as u64;
            return Ok((self.store_whole(path, bytes).await?, size));
        }
        let upload = start_upload(&self.store, path, declared).await?;
        let stage = receive(Stage::new(upload, limit), feed).await?;
        let (stored, size) = on_blocking_pool(move || {
            let staged = stage.finish();
            check_length(declared, staged.length)?;
            Ok((commit(staged.upload, &metrics)?, staged.length))
        })
        .await?;
        self.count(path, stored, size);
        Ok((stored, size))
    }

    /// Stores a decoded side file. Decoding starts when the whole body has arrived, so that no decoder
    /// waits for a client.
    async fn put_encoded_side_file(
        &self,
        path: &CachePath,
        encoding: Compression,
        declared: Option<u64>,
        limit: u64,
        feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<(Stored, u64), PutError> {
        let kind_limit = match path {
            CachePath::Log(_) => DECODED_LOG_LIMIT,
            _ => DECODED_JSON_LIMIT,
        };
        if unpack::has_no_decoder(encoding) {
            return Err(PutError::NoDecoder(encoding));
        }
        let limit = limit.min(kind_limit);
        let body = collect(&self.store, path, declared, limit, feed).await?;
        let limit = limit.min(DECODED_FLOOR.max(body.len().saturating_mul(BOMB_RATIO)));
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let key = path.clone();
        let (stored, size) = decode_at_rest(&self.decoders, Allowance::USUAL, move |allowance| {
            let mut decoder = encoding_decoder(encoding, body.reader(), allowance)?;
            let mut upload = store.start_upload(&key, None)?;
            let mut buffer = vec![0; MEMORY_BODY_LIMIT as usize];
            let mut length = 0;
            loop {
                let count = decoder
                    .read(&mut buffer)
                    .map_err(|source| encoding_error(encoding, source, allowance))?;
                if count == 0 {
                    break;
                }
                length += count as u64;
                if length > limit {
                    return Err(PutError::TooLarge { limit });
                }
                upload.write(&buffer[..count])?;
            }
            Ok((commit(upload, &metrics)?, length))
        })
        .await?;
        self.count(path, stored, size);
        Ok((stored, size))
    }
}
