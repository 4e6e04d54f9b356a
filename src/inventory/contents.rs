//! The contents of a cache: paths, their references, and the objects that belong to them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;
use tracing::warn;

use crate::logging::with_causes;
use crate::nix::{CachePath, StoreDir, StorePath, StorePathHash};
use crate::store::StoreError;

/// The contents of a cache.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The store paths that have narinfos.
    pub paths: Vec<StoredPath>,
    /// The objects that can belong to several paths: all NARs, and the logs of paths in the cache.
    pub shared: Vec<StoredObject>,
    /// Objects that belong to no path in the cache, other than NARs.
    pub unowned: Vec<StoredObject>,
    /// The indices in `shared` of further NARs that broken narinfos name. If a narinfo has two
    /// `URL` lines, versions of Nix differ in which NAR they fetch, so both NARs are kept.
    pub referenced_by_broken: Vec<u32>,
    /// The numbers of narinfos that do not parse.
    pub unparsed: Unparsed,
    /// Narinfos that could not be read. Each may reference any object.
    pub unreadable: Vec<(CachePath, StoreError)>,
    /// The indices in `paths`.
    pub(super) index_by_hash: HashMap<StorePathHash, u32>,
}

/// The numbers of narinfos that do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Unparsed {
    /// Narinfos from which a NAR or references can be read. They count as paths, because some
    /// version of Nix may accept them.
    pub lenient: usize,
    /// Narinfos that name neither a NAR nor references.
    pub garbage: usize,
}

/// A store path.
#[derive(Debug, Clone)]
pub struct StoredPath {
    /// The store path. If the narinfo has no valid one, it has the narinfo's hash part and the name
    /// `unparsed-narinfo`.
    pub store_path: StorePath,
    /// The index of its NAR in [`Inventory::shared`].
    pub nar: Option<u32>,
    /// The index of its log in [`Inventory::shared`].
    pub log: Option<u32>,
    /// The indices of its references in [`Inventory::paths`], without itself and absent paths.
    pub references: Box<[u32]>,
    /// The side files that are removed with the narinfo.
    pub side_files: Vec<CachePath>,
    /// Bytes in the narinfo and its side files.
    pub size: u64,
    /// The size of the uncompressed NAR in bytes.
    pub nar_size: u64,
    /// Whether the path was mirrored from an upstream, and not uploaded since.
    pub mirrored: bool,
    /// The time when the narinfo was written.
    pub uploaded: SystemTime,
    /// The last use of the narinfo or of its side files.
    pub used: SystemTime,
}

/// An object that is not a narinfo.
#[derive(Debug, Clone)]
pub struct StoredObject {
    /// The name of the object.
    pub path: CachePath,
    /// The side files that are removed with the object.
    pub side_files: Vec<CachePath>,
    /// Bytes in the object and its side files.
    pub size: u64,
    /// The last use of the object or of its side files.
    pub used: SystemTime,
}

/// A failed inventory. Without an inventory nothing may be removed, because an unreadable narinfo
/// may reference any object.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The store failed.
    #[error("cannot list the cache, so nothing was removed")]
    Store(#[from] StoreError),
    /// An unreadable narinfo, which may reference any object.
    #[error(
        "cannot read {path}{}; any object may be referenced by it, so nothing was removed; \
         repair the disk, or move the file out of the cache",
        and_others(*others)
    )]
    Unreadable {
        /// The first unreadable narinfo.
        path: CachePath,
        /// The number of others.
        others: usize,
        /// The error.
        source: Box<StoreError>,
    },
    /// No narinfo is for the configured store directory, so every NAR would look unreferenced.
    #[error(
        "no narinfo in the cache is for the store directory {0}, so nothing was removed; set \
         NIX_STORED_STORE_DIR to the store directory of the cache"
    )]
    OtherStoreDir(StoreDir),
}

fn and_others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " and 1 other narinfo".to_owned(),
        _ => format!(" and {count} other narinfos"),
    }
}

impl Inventory {
    /// Creates an inventory of these paths and objects.
    pub fn new(
        paths: Vec<StoredPath>,
        shared: Vec<StoredObject>,
        unowned: Vec<StoredObject>,
    ) -> Self {
        let index_by_hash = index_by_hash(paths.iter().map(|path| &path.store_path));
        Self { paths, shared, unowned, index_by_hash, ..Self::default() }
    }

    /// Returns the inventory, or an error if a narinfo could not be read. Nothing may be removed
    /// then, because the narinfo may reference any object.
    pub fn complete(mut self) -> Result<Self, InventoryError> {
        if self.unreadable.is_empty() {
            return Ok(self);
        }
        let (path, source) = self.unreadable.swap_remove(0);
        let others = self.unreadable.len();
        Err(InventoryError::Unreadable { path, others, source: Box::new(source) })
    }

    /// Logs the number of narinfos that do not parse, and of those that cannot be read.
    pub(super) fn log_unparsed(&self) {
        let Unparsed { lenient, garbage } = self.unparsed;
        if lenient + garbage > 0 {
            warn!(
                lenient,
                garbage,
                "some narinfos do not parse; their NARs and references are kept; run nix-stored \
                 verify"
            );
        }
        if let Some((path, error)) = self.unreadable.first() {
            let count = self.unreadable.len();
            warn!(%path, count, error = %with_causes(error), "some narinfos cannot be read; collections remove nothing");
        }
    }

    /// Returns the index of the path with this hash part.
    pub fn find(&self, hash: StorePathHash) -> Option<usize> {
        self.index_by_hash.get(&hash).map(|&index| index as usize)
    }

    /// Returns the last use of a path: of its narinfo, NAR, log or side files.
    pub fn last_use(&self, path: usize) -> SystemTime {
        let shared = self.shared_by(path).map(|object| self.shared[object].used);
        shared.fold(self.paths[path].used, SystemTime::max)
    }

    /// Returns the number of bytes in all objects.
    pub fn size(&self) -> u64 {
        let paths = self.paths.iter().map(|path| path.size);
        let others = self.shared.iter().chain(&self.unowned).map(|object| object.size);
        paths.chain(others).sum()
    }

    /// Returns the indices of the shared objects that belong to a path.
    pub fn shared_by(&self, path: usize) -> impl Iterator<Item = usize> + use<> {
        let StoredPath { nar, log, .. } = self.paths[path];
        nar.into_iter().chain(log).map(|index| index as usize)
    }

    /// Returns the number of bytes in a path and its objects, including objects that also belong to
    /// other paths.
    pub fn size_with_shared(&self, path: usize) -> u64 {
        let shared = self.shared_by(path).map(|object| self.shared[object].size);
        self.paths[path].size + shared.sum::<u64>()
    }

    /// Returns the indices of the `count` largest paths, the largest first.
    pub fn largest(&self, count: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.paths.len()).collect();
        let order =
            |&path: &usize| (Reverse(self.size_with_shared(path)), &self.paths[path].store_path);
        indices.sort_by(|a, b| order(a).cmp(&order(b)));
        indices.truncate(count);
        indices
    }
}

/// Maps the hash part of each path to its index.
pub(super) fn index_by_hash<'a>(
    paths: impl Iterator<Item = &'a StorePath>,
) -> HashMap<StorePathHash, u32> {
    paths.enumerate().map(|(index, path)| (path.hash(), to_index(index))).collect()
}

pub(super) fn to_index(index: usize) -> u32 {
    u32::try_from(index).expect("fewer objects than u32 has numbers")
}
