//! The result of a migration.

use serde::Serialize;

use crate::cache::PutError;
use crate::inventory::InventoryError;
use crate::nix::CachePath;
use crate::retention::PinError;
use crate::store::StoreError;
use crate::verify::Damage;

/// The result of a migration.
#[derive(Debug, Default, Serialize)]
pub(crate) struct MigrateReport {
    /// The number of copied store paths.
    pub paths: usize,
    /// The number of store paths that were already in the target.
    pub present: usize,
    /// The number of copied objects other than narinfos.
    pub objects: usize,
    /// Bytes in all copied objects.
    pub bytes: u64,
    /// The number of copied pins.
    pub pins: usize,
    /// The number of NARs that no narinfo names. They are not copied: their uploads were abandoned,
    /// or are still running.
    pub orphans: usize,
    /// The store paths that have different contents in the two caches. The target keeps its own.
    pub differing: Vec<String>,
    /// The damaged objects of the source, which were not copied.
    pub damage: Vec<Damage>,
    /// Whether the migration was stopped before its end.
    pub stopped: bool,
}

/// A failed migration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    /// The source cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A pin cannot be read or set.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// One of the two stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target refused an intact object.
    #[error("{object} was refused")]
    Refused {
        /// The object.
        object: CachePath,
        /// The reason.
        source: PutError,
    },
}
