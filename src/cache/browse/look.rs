//! The facts about one store path.

use std::io::Read;
use std::time::SystemTime;

use thiserror::Error;
use tokio::runtime::Handle;

use super::TooManyPages;
use crate::cache::Cache;
use crate::cache::nar::reader;
use crate::nix::{CachePath, NarInfo, StorePathHash, narinfo};
use crate::store::{Metadata, StoreError};

/// The facts about a store path.
#[derive(Debug, Clone)]
pub struct Look {
    /// The parsed narinfo.
    pub info: NarInfo,
    /// For each of its first signatures, whether it is valid, and by a key that this cache was given.
    pub trusted: Vec<bool>,
    /// When its narinfo was written.
    pub uploaded: SystemTime,
    /// When its narinfo or its NAR was used last.
    pub used: SystemTime,
    /// The length of the file that its NAR is in; none if that is gone.
    pub file_size: Option<u64>,
    /// The log of its build, if that is here.
    pub log: Option<CachePath>,
}

/// The reason why a path cannot be shown.
#[derive(Debug, Error)]
pub enum LookError {
    /// Too many paths are being read.
    #[error(transparent)]
    TooMany(#[from] TooManyPages),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Cache {
    /// Returns the facts about the path with this hash part, or `None` if the path is absent or its
    /// narinfo cannot be read.
    pub async fn look_at(&self, hash: StorePathHash) -> Result<Option<Look>, LookError> {
        let cache = self.clone();
        let read = self.work_for_page(move || cache.read_for_page(hash)).await??;
        let Some((metadata, info, trusted)) = read else {
            return Ok(None);
        };
        let nar = info.nar_name().map(CachePath::Nar);
        let log = info.deriver.clone().map(CachePath::Log);
        let head = async |path: &Option<CachePath>| match path {
            Some(path) => self.store.head(path).await,
            None => Ok(None),
        };
        let (nar, logged) = tokio::try_join!(head(&nar), head(&log))?;
        Ok(Some(Look {
            trusted,
            uploaded: metadata.modified,
            used: nar.as_ref().map_or(metadata.used, |nar| nar.used.max(metadata.used)),
            file_size: nar.map(|nar| nar.size),
            log: log.filter(|_| logged.is_some()),
            info,
        }))
    }

    /// A narinfo, and which of its signatures are valid. It is opened here, where few are read at a
    /// time, because it can be large; so is parsing it, and each signature is 0.1 ms of work.
    fn read_for_page(
        &self,
        hash: StorePathHash,
    ) -> Result<Option<(Metadata, NarInfo, Vec<bool>)>, StoreError> {
        let path = CachePath::NarInfo(hash);
        let Some(object) = Handle::current().block_on(self.store.get(&path))? else {
            return Ok(None);
        };
        let mut text = Vec::new();
        let metadata = object.metadata;
        if metadata.size > narinfo::MAX_SIZE {
            return Ok(None);
        }
        let read = reader(object.content, metadata.size).read_to_end(&mut text);
        read.map_err(|error| StoreError::new("reading", &path.key(), error))?;
        let Ok(info) = NarInfo::parse(&text, &self.info.store_dir) else {
            return Ok(None);
        };
        let fingerprint = info.fingerprint();
        let keys = &self.admission.trusted_public_keys;
        let trusted = |signature| keys.iter().any(|key| key.verifies(&fingerprint, signature));
        let trusted = info.signatures.iter().take(narinfo::MAX_SIGNATURES).map(trusted).collect();
        Ok(Some((metadata, info, trusted)))
    }
}
