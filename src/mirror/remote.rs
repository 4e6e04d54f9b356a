//! A path that an upstream has.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;

use super::client::UpstreamClient;
use super::error::UpstreamError;
use super::expiring::ExpiringEntry;
use crate::nix::cache_path::NarName;
use crate::nix::{NarInfo, StoreDir, StorePath, StorePathHash};
use crate::store::{Content, Metadata, Object};

/// The result of requesting a path from the upstreams. `None` means that no upstream has the path.
pub(super) type LookupResult = Result<Option<Arc<RemotePath>>, UpstreamError>;

/// A path that an upstream has.
pub(super) struct RemotePath {
    /// The store path.
    pub store_path: StorePath,
    /// The size of the NAR file in bytes, if the narinfo states it.
    pub file_size: Option<u64>,
    /// The narinfo as it is served, with the URL of the NAR in this cache. It is remembered as
    /// text, which takes a third of the memory of the parsed form.
    pub object: (Metadata, Bytes),
    /// The name of the NAR in this cache.
    pub nar: NarName,
    /// The upstream that has the path.
    pub(super) client: Arc<UpstreamClient>,
    /// The URL of the NAR at the upstream, relative to its base URL.
    pub url: String,
}

impl RemotePath {
    /// Parses the narinfo, whose paths are in `store_dir`.
    pub(super) fn info(&self, store_dir: &StoreDir) -> NarInfo {
        NarInfo::parse(&self.object.1, store_dir)
            .expect("the text was written from a parsed narinfo")
    }

    /// The narinfo as an object of a store.
    pub(super) fn object(&self) -> Object {
        let (metadata, text) = self.object.clone();
        Object { metadata, content: Content::Bytes(text) }
    }
}

/// Weighs remembered lookups by their memory.
#[derive(Clone)]
pub(super) struct RemoteWeighter;

/// The memory of an entry besides the text of its narinfo, in bytes.
const ENTRY_OVERHEAD: u64 = 512;

impl Weighter<StorePathHash, ExpiringEntry<LookupResult>> for RemoteWeighter {
    fn weight(&self, _: &StorePathHash, entry: &ExpiringEntry<LookupResult>) -> u64 {
        let length = match &entry.value {
            Ok(Some(remote)) => remote.object.1.len() as u64,
            _ => 0,
        };
        ENTRY_OVERHEAD + length
    }
}

impl Weighter<NarName, Arc<RemotePath>> for RemoteWeighter {
    fn weight(&self, _: &NarName, remote: &Arc<RemotePath>) -> u64 {
        ENTRY_OVERHEAD + remote.object.1.len() as u64
    }
}
