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
pub struct Report {
    /// Store paths that were copied.
    pub paths: usize,
    /// Store paths that were here already.
    pub present: usize,
    /// NARs, and objects of every other kind but narinfos, that were copied.
    pub objects: usize,
    /// Bytes in everything that was copied.
    pub bytes: u64,
    /// Pins of the other cache, which are pins here now.
    pub pins: usize,
    /// NARs that no narinfo names: uploads that were given up, or are going on. They are not copied.
    pub orphans: usize,
    /// Store paths that both have, with other contents. Those that were here stay.
    pub differing: Vec<String>,
    /// The damaged objects of the other cache, which were not copied.
    pub damage: Vec<Damage>,
    /// The migration was stopped before the end.
    pub stopped: bool,
}

/// The failure of a migration.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The other cache cannot be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A pin cannot be read or set.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// One of the two stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An intact object was refused.
    #[error("{object} was refused")]
    NotTaken {
        /// The object.
        object: CachePath,
        /// Why.
        source: PutError,
    },
}
