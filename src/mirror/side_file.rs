//! Side files of upstreams.

use std::io;
use std::sync::Arc;

use futures_util::{FutureExt, TryStreamExt};

use super::client::Client;
use super::error::{GetError, get_error, invalid_response};
use super::upstreams::Upstreams;
use crate::cache::Cache;
use crate::ingest::{BodyError, Feed, Turn, collect, decode};
use crate::nix::{CachePath, Compression};
use crate::store::{Content, Metadata, Object};

/// The maximum size of a side file, in bytes. The largest logs have some 100 MB.
const SIDE_FILE_LIMIT: u64 = 1024 * 1024 * 1024;

/// The maximum size of a side file that is not stored, in bytes. It is held in memory.
const SIDE_FILE_IN_MEMORY: u64 = 16 * 1024 * 1024;

/// Fetches side files.
pub(super) struct SideFileFetcher<'a> {
    pub cache: &'a Cache,
    pub upstreams: &'a Upstreams,
}

impl SideFileFetcher<'_> {
    /// Returns a side file that is not in the store from the first upstream that has it.
    pub(super) async fn get_side_file(&self, path: &CachePath) -> Result<Option<Object>, GetError> {
        let Self { cache, upstreams } = self;
        if upstreams.is_empty() || upstreams.is_known_absent(path) {
            return Ok(None);
        }
        let ask = |client: Arc<Client>| {
            async move {
                let answer = client.get_object(path).await?;
                Ok(answer.map(|answer| (client, answer)))
            }
            .boxed()
        };
        let found = upstreams.first(ask);
        let Some((client, answer)) = found.await? else {
            upstreams.remember_absent(path);
            return Ok(None);
        };
        let encoding = match answer.encoding.as_deref().map(str::parse) {
            None => Compression::None,
            Some(Ok(encoding)) => encoding,
            Some(Err(_)) => return Err(invalid_response(&client.name, "unknown Content-Encoding")),
        };
        let length = answer.length;
        let feed = Feed::new(answer.body.map_err(cut_short), Turn::unlimited());
        if !client.store {
            let (store, limit) = (cache.store(), SIDE_FILE_IN_MEMORY);
            let text = async {
                let text = collect(store, path, length, limit, feed).await?;
                let text = text.into_bytes(path).await?;
                decode(cache.decoders(), encoding, text).await
            };
            let text = text.await.map_err(|error| get_error(error, &client.name))?;
            let metadata = Metadata::of(&text);
            return Ok(Some(Object { metadata, content: Content::Bytes(text) }));
        }
        let limit = SIDE_FILE_LIMIT;
        cache
            .put_side_file(path, encoding, length, limit, feed)
            .await
            .map_err(|error| get_error(error, &client.name))?;
        Ok(cache.store().get(path).await?)
    }
}

fn cut_short(error: io::Error) -> BodyError {
    BodyError::CutShort(error.into())
}
