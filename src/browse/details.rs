//! The details of one store path.

use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use thiserror::Error;
use tokio::runtime::Handle;

use super::workers::{TooManyPages, Workers};
use crate::cache::Cache;
use crate::nix::{CachePath, NarInfo, StorePathHash, narinfo};
use crate::store::{Metadata, StoreError};
use crate::unpack::object_reader;

/// The details of a store path.
#[derive(Debug, Clone)]
pub struct PathDetails {
    /// The parsed narinfo.
    pub info: NarInfo,
    /// For each of the first signatures, whether it is a valid one by a trusted key of this cache.
    pub trusted: Vec<bool>,
    /// The time when the narinfo was written.
    pub uploaded: SystemTime,
    /// The last use of the narinfo or the NAR.
    pub used: SystemTime,
    /// The size of the NAR file in bytes, or `None` if the NAR is missing.
    pub file_size: Option<u64>,
    /// The build log, if it is in the cache.
    pub log: Option<CachePath>,
}

/// The reason why a path cannot be shown.
#[derive(Debug, Error)]
pub enum DetailsError {
    /// Too many paths are being read.
    #[error(transparent)]
    TooMany(#[from] TooManyPages),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PathDetails {
    /// Returns the details of the path with this hash part, or `None` if the path is absent or its
    /// narinfo cannot be read.
    pub(super) async fn read(
        cache: &Arc<Cache>,
        workers: &Workers,
        hash: StorePathHash,
    ) -> Result<Option<Self>, DetailsError> {
        let reader = Arc::clone(cache);
        let read = workers.run(move || read_narinfo(&reader, hash)).await??;
        let Some((metadata, info, trusted)) = read else {
            return Ok(None);
        };
        let nar = info.nar_name().map(CachePath::Nar);
        let log = info.deriver.clone().map(CachePath::Log);
        let head = async |path: &Option<CachePath>| match path {
            Some(path) => cache.store().head(path).await,
            None => Ok(None),
        };
        let (nar, logged) = tokio::try_join!(head(&nar), head(&log))?;
        Ok(Some(Self {
            trusted,
            uploaded: metadata.modified,
            used: nar.as_ref().map_or(metadata.used, |nar| nar.used.max(metadata.used)),
            file_size: nar.map(|nar| nar.size),
            log: log.filter(|_| logged.is_some()),
            info,
        }))
    }
}

/// Reads a narinfo, and verifies its signatures. Must run on a worker, because a narinfo can have
/// 16 MiB, and verifying a signature takes 0.1 ms.
fn read_narinfo(
    cache: &Cache,
    hash: StorePathHash,
) -> Result<Option<(Metadata, NarInfo, Vec<bool>)>, StoreError> {
    let path = CachePath::NarInfo(hash);
    let Some(object) = Handle::current().block_on(cache.store().get(&path))? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    let metadata = object.metadata;
    if metadata.size > narinfo::MAX_SIZE {
        return Ok(None);
    }
    let read = object_reader(object.content, metadata.size).read_to_end(&mut text);
    read.map_err(|error| StoreError::new("reading", &path.key(), error))?;
    let Ok(info) = NarInfo::parse(&text, &cache.info().store_dir) else {
        return Ok(None);
    };
    let fingerprint = info.fingerprint();
    let keys = &cache.admission().trusted_public_keys;
    let trusted = |signature| keys.iter().any(|key| key.verifies(&fingerprint, signature));
    let trusted = info.signatures.iter().take(narinfo::MAX_SIGNATURES).map(trusted).collect();
    Ok(Some((metadata, info, trusted)))
}
