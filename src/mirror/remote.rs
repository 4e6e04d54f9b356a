//! A path that an upstream has.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;

use super::client::Client;
use super::error::UpstreamError;
use super::expiring::Entry;
use crate::nix::cache_path::NarName;
use crate::nix::{NarInfo, StoreDir, StorePath, StorePathHash};
use crate::store::{Content, Metadata, Object};

/// The result of requesting a path from the upstreams; none if no upstream has the path.
pub(super) type LookupResult = Result<Option<Arc<Remote>>, UpstreamError>;

/// A path that an upstream has.
pub(super) struct Remote {
    /// Its name.
    pub store_path: StorePath,
    /// The length of the NAR's file, if the upstream states it.
    pub file_size: Option<u64>,
    /// Its narinfo as it is served, with the URL that the NAR has here. It is kept as text, which takes
    /// a third of the memory.
    pub object: (Metadata, Bytes),
    /// The NAR's name here.
    pub nar: NarName,
    /// The upstream that has the path.
    pub(super) client: Arc<Client>,
    /// Where the NAR is there.
    pub url: String,
}

impl Remote {
    /// Its narinfo, whose paths lie in `store_dir`.
    pub fn info(&self, store_dir: &StoreDir) -> NarInfo {
        NarInfo::parse(&self.object.1, store_dir).expect("it was written from a parsed one")
    }

    /// The narinfo as an object of a store.
    pub fn object(&self) -> Object {
        let (metadata, text) = self.object.clone();
        Object { metadata, content: Content::Bytes(text) }
    }
}

/// Weighs remembered lookups by their memory.
#[derive(Clone)]
pub(super) struct RemoteWeighter;

/// The memory of an entry besides the text of its narinfo, in bytes.
const OVERHEAD: u64 = 512;

impl Weighter<StorePathHash, Entry<LookupResult>> for RemoteWeighter {
    fn weight(&self, _: &StorePathHash, entry: &Entry<LookupResult>) -> u64 {
        let length = match &entry.value {
            Ok(Some(remote)) => remote.object.1.len() as u64,
            _ => 0,
        };
        OVERHEAD + length
    }
}

impl Weighter<NarName, Arc<Remote>> for RemoteWeighter {
    fn weight(&self, _: &NarName, remote: &Arc<Remote>) -> u64 {
        OVERHEAD + remote.object.1.len() as u64
    }
}
