//! The contents of a cache: paths, their references, and the objects that belong to them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;
use tracing::warn;

use crate::nix::{CachePath, StoreDir, StorePath, StorePathHash};
use crate::store::StoreError;

/// The contents of a cache.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The store paths, which have narinfos.
    pub paths: Vec<HeldPath>,
    /// NARs, and logs of paths that are here: what can belong to several paths.
    pub shared: Vec<HeldObject>,
    /// Objects that belong to no path here.
    pub unowned: Vec<HeldObject>,
    /// The places of NARs that a narinfo names besides its own: with two `URL` lines, versions of Nix
    /// may differ about the one that they fetch.
    pub referenced_by_broken: Vec<u32>,
    /// Narinfos that do not parse.
    pub unparsed: Unparsed,
    /// Narinfos that could not be read, and so may need anything.
    pub unreadable: Vec<(CachePath, StoreError)>,
    pub(super) places: HashMap<StorePathHash, u32>,
}

/// Numbers of narinfos that do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Unparsed {
    /// Those that name a NAR or references all the same. They are paths like any other, because some
    /// version of Nix may accept them.
    pub lenient: usize,
    /// Those that name nothing.
    pub garbage: usize,
}

/// A store path.
#[derive(Debug, Clone)]
pub struct HeldPath {
    /// Its name; one whose narinfo does not give a right one is called `unparsed-narinfo`.
    pub store_path: StorePath,
    /// The place of its NAR among the shared objects.
    pub nar: Option<u32>,
    /// The place of its log among the shared objects.
    pub log: Option<u32>,
    /// The indices of its references, without itself and absent paths.
    pub references: Box<[u32]>,
    /// Objects that go with its narinfo.
    pub sides: Vec<CachePath>,
    /// Bytes in the narinfo and the objects that go with it.
    pub size: u64,
    /// The length of the NAR when it is unpacked, in bytes.
    pub nar_size: u64,
    /// Whether it was mirrored from an upstream, and not uploaded since.
    pub mirrored: bool,
    /// When its narinfo was written.
    pub uploaded: SystemTime,
    /// The last use of its narinfo or of an object that belongs to it.
    pub used: SystemTime,
}

/// An object that is not a narinfo.
#[derive(Debug, Clone)]
pub struct HeldObject {
    /// Its name.
    pub path: CachePath,
    /// Objects that go with it.
    pub sides: Vec<CachePath>,
    /// The bytes of the object and of the objects that belong to it.
    pub size: u64,
    /// The last use of the object or of an object that belongs to it.
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
    /// The inventory of a cache that holds this.
    pub fn new(paths: Vec<HeldPath>, shared: Vec<HeldObject>, unowned: Vec<HeldObject>) -> Self {
        let places = places(paths.iter().map(|path| &path.store_path));
        Self { paths, shared, unowned, places, ..Self::default() }
    }

    /// The inventory, if it is known of every narinfo what it needs. Nothing may be removed otherwise.
    pub fn complete(mut self) -> Result<Self, InventoryError> {
        if self.unreadable.is_empty() {
            return Ok(self);
        }
        let (path, source) = self.unreadable.swap_remove(0);
        let others = self.unreadable.len();
        Err(InventoryError::Unreadable { path, others, source: Box::new(source) })
    }

    /// Logs the errors of narinfos, once for all of them.
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
            let error = error as &dyn std::error::Error;
            warn!(%path, count, error, "some narinfos cannot be read; collections remove nothing");
        }
    }

    /// The place of the path with this hash part.
    pub fn find(&self, hash: StorePathHash) -> Option<usize> {
        self.places.get(&hash).map(|&place| place as usize)
    }

    /// When a path was used last: its narinfo, its NAR, or anything else that would go with them.
    pub fn used(&self, path: usize) -> SystemTime {
        let shared = self.shared_by(path).map(|object| self.shared[object].used);
        shared.fold(self.paths[path].used, SystemTime::max)
    }

    /// Bytes in all objects.
    pub fn size(&self) -> u64 {
        let paths = self.paths.iter().map(|path| path.size);
        let others = self.shared.iter().chain(&self.unowned).map(|object| object.size);
        paths.chain(others).sum()
    }

    /// The shared objects that belong to a path.
    pub fn shared_by(&self, path: usize) -> impl Iterator<Item = usize> + use<> {
        let HeldPath { nar, log, .. } = self.paths[path];
        nar.into_iter().chain(log).map(|place| place as usize)
    }

    /// Bytes in a path and in everything that belongs to it, also what belongs to others too.
    pub fn whole_size(&self, path: usize) -> u64 {
        let shared = self.shared_by(path).map(|object| self.shared[object].size);
        self.paths[path].size + shared.sum::<u64>()
    }

    /// The places of the `count` largest paths, the largest first.
    pub fn largest(&self, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.paths.len()).collect();
        let order = |&path: &usize| (Reverse(self.whole_size(path)), &self.paths[path].store_path);
        places.sort_by(|a, b| order(a).cmp(&order(b)));
        places.truncate(count);
        places
    }
}

/// Where each path is.
pub(super) fn places<'a>(
    paths: impl Iterator<Item = &'a StorePath>,
) -> HashMap<StorePathHash, u32> {
    paths.enumerate().map(|(at, path)| (path.hash(), to_place(at))).collect()
}

pub(super) fn to_place(index: usize) -> u32 {
    u32::try_from(index).expect("fewer objects than u32 has numbers")
}
