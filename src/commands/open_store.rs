//! Opens the store at the configured location.

use std::sync::Arc;

#[cfg(feature = "s3")]
use tracing::{debug, warn};

use crate::config::{Config, Location};
use crate::store::{FsStore, Store};

/// Opens the store; creates missing directories.
pub(super) async fn open(config: &Config) -> anyhow::Result<Arc<Store>> {
    match &config.location {
        Location::Directory(path) => {
            Ok(Arc::new(FsStore::open(path, config.min_free_space)?.into()))
        }
        #[cfg(feature = "s3")]
        Location::Bucket(bucket) => {
            if config.min_free_space > 0 {
                warn!(
                    "NIX_STORED_MIN_FREE_SPACE is ignored: the free space of a bucket is unknown"
                );
            }
            let (store, found) = crate::store::S3Store::open(bucket).await?;
            if !found.writable {
                warn!(
                    "the key may not write to the bucket: uploads will fail, and used paths are not \
                     protected from collection, because their use cannot be recorded"
                );
            } else if !found.may_abort {
                warn!(
                    "the key may not abort multipart uploads: parts of failed uploads will stay in \
                     the bucket; grant s3:AbortMultipartUpload to the key"
                );
            }
            warn_if_no_temporary_files();
            debug!(?found, "checked the bucket");
            Ok(Arc::new(store.into()))
        }
    }
}

/// Warns if uploads cannot be staged: with a bucket, they are staged in temporary files.
#[cfg(feature = "s3")]
fn warn_if_no_temporary_files() {
    if let Err(error) = tempfile::tempfile() {
        warn!(
            %error,
            "cannot write temporary files in {}: large narinfos and compressed side files will be \
             refused, slow uploads stay in memory, and NARs from upstreams are sent only after they \
             are stored; set TMPDIR to a directory that this user can write to",
            std::env::temp_dir().display()
        );
    }
}

/// Opens an existing store; creates nothing.
pub(super) async fn open_existing(config: &Config) -> anyhow::Result<Arc<Store>> {
    match &config.location {
        Location::Directory(path) => {
            Ok(Arc::new(FsStore::open_existing(path, config.min_free_space)?.into()))
        }
        #[cfg(feature = "s3")]
        Location::Bucket(bucket) => {
            Ok(Arc::new(crate::store::S3Store::open_existing(bucket).await?.into()))
        }
    }
}
