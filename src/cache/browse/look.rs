//! What is known of one path.

use std::time::SystemTime;

use crate::cache::Cache;
use crate::nix::{CachePath, NarInfo, StorePathHash};
use crate::store::StoreError;

/// A store path that is here.
#[derive(Debug, Clone)]
pub struct Look {
    /// What its narinfo says.
    pub info: NarInfo,
    /// For each of its signatures, whether it is valid, and by a key that this cache was given.
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

impl Cache {
    /// What is known of the path with this hash part; none if it is not here, or if its narinfo
    /// cannot be read.
    pub async fn look_at(&self, hash: StorePathHash) -> Result<Option<Look>, StoreError> {
        let path = CachePath::NarInfo(hash);
        let (metadata, info) = tokio::try_join!(self.store.head(&path), self.read_narinfo(&path))?;
        let (Some(metadata), Some(info)) = (metadata, info) else {
            return Ok(None);
        };
        let nar = info.nar_name().map(CachePath::Nar);
        let log = info.deriver.clone().map(CachePath::Log);
        let head = async |path: &Option<CachePath>| match path {
            Some(path) => self.store.head(path).await,
            None => Ok(None),
        };
        let (nar, logged) = tokio::try_join!(head(&nar), head(&log))?;
        let fingerprint = info.fingerprint();
        let keys = &self.admission.trusted_public_keys;
        let trusted = |signature| keys.iter().any(|key| key.verifies(&fingerprint, signature));
        Ok(Some(Look {
            trusted: info.signatures.iter().map(trusted).collect(),
            uploaded: metadata.modified,
            used: nar.as_ref().map_or(metadata.used, |nar| nar.used.max(metadata.used)),
            file_size: nar.map(|nar| nar.size),
            log: log.filter(|_| logged.is_some()),
            info,
        }))
    }
}
