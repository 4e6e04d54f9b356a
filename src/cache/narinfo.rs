//! The narinfo is the commit: with it, a store path becomes visible.

use bytes::Bytes;
use futures_util::Stream;

use super::{BodyError, Cache, PutError, ingest};
use crate::nix::{CachePath, NarInfo, StorePathHash};

impl Cache {
    /// Takes a narinfo when it is what its name says.
    pub(super) async fn put_narinfo(
        &self,
        hash: StorePathHash,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    ) -> Result<(), PutError> {
        let text = ingest::collect(declared, body).await?;
        let info = NarInfo::parse(&text, &self.info.store_dir)?;
        let actual = info.store_path.hash();
        if actual != hash {
            return Err(PutError::HashPart { expected: hash, actual });
        }
        ingest::whole(&self.store, &CachePath::NarInfo(hash), text).await
    }
}
