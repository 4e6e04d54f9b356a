//! Side files of upstreams.

use std::io;
use std::sync::Arc;

use futures_util::{FutureExt, TryStreamExt};

use super::client::UpstreamClient;
use super::error::{GetError, get_error, invalid_response};
use super::upstreams::Upstreams;
use crate::cache::Cache;
use crate::ingest::{BodyError, Feed, TransferPermit, collect, decode};
use crate::nix::{CachePath, Compression};
use crate::store::{Content, Metadata, Object};

/// The maximum size of a side file that is stored, in bytes. The largest logs have some 100 MB.
const MAX_STORED_SIZE: u64 = 1024 * 1024 * 1024;

/// The maximum size of a side file that is not stored, in bytes. It is held in memory.
const MAX_SIZE_IN_MEMORY: u64 = 16 * 1024 * 1024;

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
        let request = |client: Arc<UpstreamClient>| {
            async move {
                let response = client.get_object(path).await?;
                Ok(response.map(|response| (client, response)))
            }
            .boxed()
        };
        let found = upstreams.first(request);
        let Some((client, response)) = found.await? else {
            upstreams.remember_absent(path);
            return Ok(None);
        };
        let encoding = match response.encoding.as_deref().map(str::parse) {
            None => Compression::None,
            Some(Ok(encoding)) => encoding,
            Some(Err(_)) => return Err(invalid_response(&client.name, "unknown Content-Encoding")),
        };
        let length = response.length;
        let feed = Feed::new(response.body.map_err(cut_short), TransferPermit::unlimited());
        if !client.store {
            let (store, limit) = (cache.store(), MAX_SIZE_IN_MEMORY);
            let text = async {
                let text = collect(store, path, length, limit, feed).await?;
                let text = text.into_bytes(path).await?;
                decode(cache.decoders(), encoding, text).await
            };
            let text = text.await.map_err(|error| get_error(error, &client.name))?;
            let metadata = Metadata::of(&text);
            return Ok(Some(Object { metadata, content: Content::Bytes(text) }));
        }
        let limit = MAX_STORED_SIZE;
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
