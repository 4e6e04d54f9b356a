//! Requests objects that are not in the store from the upstreams. Without the feature `upstream`
//! there are none.

use super::{Cache, GetError};
use crate::nix::{CachePath, StorePathHash};
use crate::store::{Metadata, Object};

#[cfg(feature = "upstream")]
impl Cache {
    /// The name under which an object is stored. It differs from `path` if `path` is the provisional
    /// name of a NAR of an upstream and the NAR has been fetched since.
    pub async fn canonical(&self, path: CachePath) -> Result<CachePath, GetError> {
        match path {
            CachePath::Nar(name) => Ok(CachePath::Nar(self.resolve_nar_name(name).await?)),
            path => Ok(path),
        }
    }

    /// An object that is not here.
    pub(super) async fn get_elsewhere(&self, path: &CachePath) -> Result<Option<Object>, GetError> {
        match (path, &self.upstreams) {
            (_, None) | (CachePath::CacheInfo, _) => Ok(None),
            (CachePath::NarInfo(hash), Some(upstreams)) => {
                let Some(remote) =
                    upstreams.lookup(hash, &self.info.store_dir, &self.decoders).await?
                else {
                    return Ok(None);
                };
                self.keep_if_its_nar_is_here(&remote).await?;
                Ok(Some(remote.object()))
            }
            (CachePath::Nar(name), _) => self.mirror_nar(*name).await,
            _ => self.mirror_side_file(path).await,
        }
    }

    pub(super) async fn head_elsewhere(
        &self,
        path: &CachePath,
    ) -> Result<Option<Metadata>, GetError> {
        match path {
            CachePath::Nar(name) => self.head_nar(*name).await,
            _ => Ok(self.get_elsewhere(path).await?.map(|object| object.metadata)),
        }
    }

    /// Whether a path that is not here can be had here all the same.
    pub(super) async fn has_elsewhere(&self, hash: &StorePathHash) -> bool {
        match &self.upstreams {
            Some(upstreams) => {
                matches!(
                    upstreams.lookup(hash, &self.info.store_dir, &self.decoders).await,
                    Ok(Some(_))
                )
            }
            None => false,
        }
    }
}

#[cfg(not(feature = "upstream"))]
impl Cache {
    /// The name under which an object is stored, which is `path` without upstreams.
    pub async fn canonical(&self, path: CachePath) -> Result<CachePath, GetError> {
        Ok(path)
    }

    pub(super) async fn get_elsewhere(&self, _: &CachePath) -> Result<Option<Object>, GetError> {
        Ok(None)
    }

    pub(super) async fn head_elsewhere(&self, _: &CachePath) -> Result<Option<Metadata>, GetError> {
        Ok(None)
    }

    pub(super) async fn has_elsewhere(&self, _: &StorePathHash) -> bool {
        false
    }
}
