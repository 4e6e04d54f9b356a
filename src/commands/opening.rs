//! From where the cache is to the store that is there.

use std::sync::Arc;

#[cfg(feature = "s3")]
use tracing::{debug, warn};

use crate::config::{Config, Location};
use crate::store::{FsStore, Store};

/// Opens the store, and makes what is missing of it.
pub(super) async fn open(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    match &config.location {
        Location::Directory(path) => Ok(Arc::new(FsStore::open(path, config.min_free_space)?)),
        #[cfg(feature = "s3")]
        Location::Bucket(bucket) => {
            if config.min_free_space > 0 {
                warn!(
                    "NIX_STORED_MIN_FREE_SPACE does nothing: nobody knows how much fits a bucket"
                );
            }
            let (store, found) = crate::store::S3Store::open(bucket).await?;
            if !found.writable {
                warn!(
                    "nothing may be stored in the bucket: uploads will fail, and what is served is \
                     not protected from collection, because its use cannot be recorded"
                );
            } else if !found.may_abort {
                warn!(
                    "uploads in parts may not be given up: the key needs the right \
                     s3:AbortMultipartUpload, or what is left of them stays in the bucket"
                );
            }
            say_if_no_temporary_files();
            debug!(?found, "looked at the bucket");
            Ok(Arc::new(store))
        }
    }
}

/// A bucket has no files for what is not stored yet, so they are temporary ones.
#[cfg(feature = "s3")]
fn say_if_no_temporary_files() {
    if let Err(error) = tempfile::tempfile() {
        warn!(
            %error,
            "temporary files cannot be written in {}: large narinfos and encoded side files will be \
             refused, slow uploads stay in memory, and NARs of upstreams are answered when they have \
             been stored; set TMPDIR to a directory that this user can write to",
            std::env::temp_dir().display()
        );
    }
}

/// Opens a store that is there.
pub(super) async fn open_existing(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    match &config.location {
        Location::Directory(path) => {
            Ok(Arc::new(FsStore::open_existing(path, config.min_free_space)?))
        }
        #[cfg(feature = "s3")]
        Location::Bucket(bucket) => {
            Ok(Arc::new(crate::store::S3Store::open_existing(bucket).await?))
        }
    }
}
