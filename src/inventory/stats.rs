//! Statistics of a cache.

use std::time::SystemTime;

use super::contents::Inventory;
use crate::nix::CachePath;

/// The statistics of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Store paths: narinfos.
    pub paths: usize,
    /// The paths that were mirrored from an upstream, and not uploaded since.
    pub mirrored: usize,
    /// Bytes in the NARs of paths that were uploaded here.
    pub own_bytes: u64,
    /// Bytes in the NARs of paths that were only mirrored.
    pub mirrored_bytes: u64,
    /// NARs.
    pub nars: usize,
    /// Objects of every other kind.
    pub others: usize,
    /// Bytes in all objects.
    pub bytes: u64,
    /// Bytes in the NARs of paths, as they are stored.
    pub packed: u64,
    /// Bytes in those NARs when they are unpacked.
    pub unpacked: u64,
    /// NARs that no narinfo names: uploads that were given up, or are going on.
    pub orphans: usize,
    /// Bytes in those.
    pub orphan_bytes: u64,
    /// Paths whose NAR is not here.
    pub without_nar: usize,
    /// Narinfos that do not parse.
    pub unparsed: usize,
    /// Narinfos that could not be read; while there are any, nothing is collected.
    pub unreadable: usize,
    /// When the path was used that has not been used for the longest, and the last use of all.
    pub used: Option<(SystemTime, SystemTime)>,
    /// When the first and the last of the paths were uploaded.
    pub uploaded: Option<(SystemTime, SystemTime)>,
}

impl Stats {
    /// Counts what there is.
    pub fn of(inventory: &Inventory) -> Self {
        let mut stats = Self { paths: inventory.paths.len(), ..Self::default() };
        let mut unpacked = vec![None; inventory.shared.len()];
        let mut own = vec![false; inventory.shared.len()];
        for (index, path) in inventory.paths.iter().enumerate() {
            match path.nar {
                Some(nar) => {
                    unpacked[nar as usize] = Some(path.nar_size);
                    own[nar as usize] |= !path.mirrored;
                }
                None => stats.without_nar += 1,
            }
            stats.mirrored += usize::from(path.mirrored);
            stats.others += path.sides.len();
            widen(&mut stats.used, inventory.used(index));
            widen(&mut stats.uploaded, path.uploaded);
        }
        for ((object, unpacked), own) in inventory.shared.iter().zip(unpacked).zip(own) {
            stats.others += object.sides.len();
            match (&object.path, unpacked) {
                (CachePath::Nar(_), Some(unpacked)) => {
                    stats.nars += 1;
                    stats.packed += object.size;
                    let bytes = if own { &mut stats.own_bytes } else { &mut stats.mirrored_bytes };
                    *bytes += object.size;
                    stats.unpacked += unpacked;
                }
                (CachePath::Nar(_), None) => {
                    stats.nars += 1;
                    stats.orphans += 1;
                    stats.orphan_bytes += object.size;
                }
                _ => stats.others += 1,
            }
        }
        stats.others += inventory.unowned.len();
        stats.bytes = inventory.size();
        stats.unparsed = inventory.unparsed.lenient + inventory.unparsed.garbage;
        stats.unreadable = inventory.unreadable.len();
        stats
    }
}

fn widen(span: &mut Option<(SystemTime, SystemTime)>, time: SystemTime) {
    *span = match *span {
        None => Some((time, time)),
        Some((first, last)) => Some((first.min(time), last.max(time))),
    };
}
