//! Statistics of a cache.

use std::time::SystemTime;

use super::contents::Inventory;
use crate::nix::CachePath;

/// The statistics of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// The number of store paths, which is that of narinfos.
    pub paths: usize,
    /// The number of paths that were mirrored from an upstream, and not uploaded since.
    pub mirrored: usize,
    /// Bytes in the NARs of uploaded paths.
    pub own_bytes: u64,
    /// Bytes in the NARs of paths that are only mirrored.
    pub mirrored_bytes: u64,
    /// The number of NARs.
    pub nars: usize,
    /// The number of objects of all other kinds.
    pub others: usize,
    /// Bytes in all objects.
    pub bytes: u64,
    /// Bytes in the NAR files of paths, compressed as stored.
    pub packed: u64,
    /// Bytes in the NARs of paths after decompression.
    pub unpacked: u64,
    /// The number of NARs that no narinfo names. Their uploads were abandoned, or are still
    /// running.
    pub orphans: usize,
    /// Bytes in the NARs that no narinfo names.
    pub orphan_bytes: u64,
    /// The number of paths whose NAR is missing.
    pub without_nar: usize,
    /// The number of narinfos that do not parse.
    pub unparsed: usize,
    /// The number of narinfos that could not be read. If it is not 0, collections remove nothing.
    pub unreadable: usize,
    /// The last use of the least recently used path, and of the most recently used one.
    pub used: Option<(SystemTime, SystemTime)>,
    /// The upload times of the oldest and the newest path.
    pub uploaded: Option<(SystemTime, SystemTime)>,
}

impl Stats {
    /// Computes the statistics of an inventory.
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
            stats.others += path.side_files.len();
            widen(&mut stats.used, inventory.last_use(index));
            widen(&mut stats.uploaded, path.uploaded);
        }
        for ((object, unpacked), own) in inventory.shared.iter().zip(unpacked).zip(own) {
            stats.others += object.side_files.len();
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
