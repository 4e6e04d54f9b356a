//! Decides which objects are removed, and why: a pure function of the inventory, the pins, the
//! limits and the time.
//!
//! The *effective* last use of a path is the latest use of the path itself and of all its direct
//! and indirect referrers. So no path is older than its referrers, and removing the oldest paths
//! leaves closures complete: the removed paths always include all referrers of each of them.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::pins::Pin;
use crate::config::Retention;
use crate::inventory::{Inventory, reference_groups, visit_reachable};
use crate::nix::StorePathHash;

/// The limits of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// If the cache exceeds this many bytes, least recently used paths are removed until it is at
    /// 90 %.
    pub max_size: Option<u64>,
    /// Paths unused for longer than this are removed.
    pub max_age: Option<Duration>,
    /// Paths used or uploaded within this time are kept, whatever the other limits are.
    pub grace: Duration,
}

/// The size at which a collection for space stops, in percent of the limit. At 100 % the cache
/// would exceed its limit again after the next upload.
const TARGET_PERCENT: u64 = 90;

/// The reason for a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The object has not been used for longer than the maximum age.
    Age,
    /// The cache is too large, and the object is among the least recently used ones.
    Size,
    /// No narinfo names the NAR. Most often its upload was abandoned.
    Orphan,
    /// An operator requested the removal.
    Request,
}

impl Reason {
    /// Returns the reason as one word, for logs and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Size => "size",
            Self::Orphan => "orphan",
            Self::Request => "request",
        }
    }
}

/// A removal. The number is the index of the path or object in the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// A narinfo with its side files.
    Path(usize, Reason),
    /// A NAR or a log, with its side files.
    Shared(usize, Reason),
    /// An object that belongs to no path in the cache.
    Unowned(usize, Reason),
}

/// The removals, in order: referrers before their references, NARs after their narinfos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The removals.
    pub removals: Vec<Removal>,
    /// Bytes in all objects before the removals.
    pub size_before: u64,
    /// Bytes in all objects after the removals.
    pub size_after: u64,
    /// The size limit in bytes, if any.
    pub max_size: Option<u64>,
}

impl Limits {
    /// The configured limits, with this grace period.
    pub fn new(retention: &Retention, grace: Duration) -> Self {
        // Names all fields, so that a new limit cannot be forgotten here.
        let Retention { max_size, max_age, gc_interval: _ } = *retention;
        Self { max_size, max_age, grace }
    }
}

impl Plan {
    /// Returns the number of bytes by which the cache would still exceed its limit.
    pub fn over_limit(&self) -> u64 {
        self.max_size.map_or(0, |limit| self.size_after.saturating_sub(limit))
    }
}

/// The reason for keeping a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepReason {
    /// The path or one of its referrers is pinned.
    Pinned {
        /// The index of the pin.
        pin: usize,
        /// The index of the pinned path: the path itself, or a referrer.
        by: usize,
    },
    /// The path or one of its referrers was used within the grace period.
    Recent {
        /// The index of the used path: the path itself, or a referrer.
        by: usize,
        /// The time of the use.
        used: SystemTime,
    },
    /// No limit requires the removal of the path.
    WithinLimits {
        /// The index of the most recently used one of the path and its referrers.
        by: usize,
        /// The time of the use.
        used: SystemTime,
    },
}

/// The decision of a plan about one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The path is removed.
    Removed(Reason),
    /// The path is kept.
    Kept(KeepReason),
}

/// The last use of each path, and the pin that keeps it, with all referrers taken into account.
/// Plans with different limits share one analysis.
#[derive(Debug)]
pub struct Analysis<'a> {
    inventory: &'a Inventory,
    /// For each path, the index of the most recently used path among itself and its referrers.
    used_by: Vec<u32>,
    /// For each path, the indices of the pin that keeps it and of the pinned path.
    pinned: Vec<Option<(u32, u32)>>,
}

/// A set of paths that can only be removed together, and its last use.
struct Candidate {
    used: SystemTime,
    /// Orders candidates with the same last use: referrers come before their references.
    rank: Reverse<usize>,
    unit: RemovalUnit,
}

enum RemovalUnit {
    /// A group of paths that refer to each other, nearly always a single path.
    Paths(Vec<u32>),
    Unowned(usize),
}

impl<'a> Analysis<'a> {
    /// Analyses an inventory, by following the references from the most recently used paths and
    /// from the pins.
    pub fn new(inventory: &'a Inventory, pins: &[Pin]) -> Self {
        let count = inventory.paths.len();
        let to_u32 = |index: usize| u32::try_from(index).expect("fewer paths than u32 has numbers");
        let mut latest_first: Vec<u32> = (0..to_u32(count)).collect();
        latest_first.sort_by_key(|&path| Reverse(inventory.last_use(path as usize)));
        let mut used_by = vec![u32::MAX; count];
        for &path in &latest_first {
            // The first path that reaches another one is its most recently used referrer.
            visit_reachable(inventory, path, |at| {
                let first = used_by[at] == u32::MAX;
                if first {
                    used_by[at] = path;
                }
                first
            });
        }
        let mut pinned = vec![None; count];
        for (number, pin) in pins.iter().enumerate() {
            for root in pin.paths.iter().filter_map(|path| inventory.find(path.hash())) {
                visit_reachable(inventory, to_u32(root), |at| {
                    let first = pinned[at].is_none();
                    if first {
                        pinned[at] = Some((to_u32(number), to_u32(root)));
                    }
                    first
                });
            }
        }
        Self { inventory, used_by, pinned }
    }

    /// Returns the effective last use of a path.
    pub fn effective_use(&self, path: usize) -> SystemTime {
        self.inventory.last_use(self.last_user(path))
    }

    /// Returns the most recently used path among a path and its direct and indirect referrers.
    pub fn last_user(&self, path: usize) -> usize {
        self.used_by[path] as usize
    }

    /// Returns the indices of the pin that keeps a path and of the pinned path: the path itself, or
    /// a referrer.
    pub fn pinned_by(&self, path: usize) -> Option<(usize, usize)> {
        self.pinned[path].map(|(pin, by)| (pin as usize, by as usize))
    }

    /// The inventory that was analysed.
    pub fn inventory(&self) -> &'a Inventory {
        self.inventory
    }

    fn is_protected(&self, path: usize, safe_from: Option<SystemTime>) -> bool {
        self.pinned[path].is_some() || is_after(self.effective_use(path), safe_from)
    }

    /// Plans a collection with these limits at `now`.
    pub fn plan(&self, limits: &Limits, now: SystemTime) -> Plan {
        let safe_from = now.checked_sub(limits.grace);
        let too_old = limits.max_age.and_then(|age| now.checked_sub(age));
        let inventory = self.inventory;
        let size_before = inventory.size();
        let mut size = size_before;
        let mut removals = Vec::new();
        let mut shared = Vec::new();
        let mut needed_by = vec![0_u32; inventory.shared.len()];
        for path in 0..inventory.paths.len() {
            inventory.shared_by(path).for_each(|object| needed_by[object] += 1);
        }
        inventory.referenced_by_broken.iter().for_each(|&object| needed_by[object as usize] += 1);
        for (index, object) in inventory.shared.iter().enumerate() {
            if needed_by[index] == 0 && !is_after(object.used, safe_from) {
                shared.push(Removal::Shared(index, Reason::Orphan));
                size -= object.size;
            }
        }

        let by_age = |used: SystemTime| too_old.is_some_and(|limit| used < limit);
        let reduced =
            |limit: u64| limit / 100 * TARGET_PERCENT + limit % 100 * TARGET_PERCENT / 100;
        // Computed after the removals by age, which may be enough.
        let mut target = None;
        for candidate in self.candidates(safe_from) {
            let reason = if by_age(candidate.used) {
                Reason::Age
            } else {
                let Some(limit) = limits.max_size else {
                    break;
                };
                let target =
                    *target.get_or_insert(if size > limit { reduced(limit) } else { size });
                if size <= target {
                    break;
                }
                Reason::Size
            };
            match candidate.unit {
                RemovalUnit::Unowned(index) => {
                    size -= inventory.unowned[index].size;
                    removals.push(Removal::Unowned(index, reason));
                }
                RemovalUnit::Paths(paths) => {
                    for path in paths {
                        let path = path as usize;
                        size -= inventory.paths[path].size;
                        removals.push(Removal::Path(path, reason));
                        for object in inventory.shared_by(path) {
                            needed_by[object] -= 1;
                            if needed_by[object] == 0 {
                                size -= inventory.shared[object].size;
                                shared.push(Removal::Shared(object, reason));
                            }
                        }
                    }
                }
            }
        }
        removals.extend(shared);
        Plan { removals, size_before, size_after: size, max_size: limits.max_size }
    }

    /// Returns the paths and objects that may be removed, least recently used first, referrers
    /// before their references.
    fn candidates(&self, safe_from: Option<SystemTime>) -> Vec<Candidate> {
        let groups = reference_groups(self.inventory);
        let paths = groups.into_iter().enumerate().filter_map(|(rank, group)| {
            let first = *group.first()? as usize;
            // Paths that refer to each other have the same effective use and pins.
            (!self.is_protected(first, safe_from)).then(|| Candidate {
                used: self.effective_use(first),
                rank: Reverse(rank),
                unit: RemovalUnit::Paths(group),
            })
        });
        let unowned = self.inventory.unowned.iter().enumerate();
        let unowned = unowned.filter(|(_, object)| !is_after(object.used, safe_from));
        let unowned = unowned.map(|(index, object)| Candidate {
            used: object.used,
            rank: Reverse(0),
            unit: RemovalUnit::Unowned(index),
        });
        let mut candidates: Vec<Candidate> = paths.chain(unowned).collect();
        candidates.sort_by_key(|candidate| (candidate.used, candidate.rank));
        candidates
    }

    /// Returns the decision of `plan` about a path, with the reason, or `None` if the path is
    /// absent. The plan must have been made with these limits at `now`.
    pub fn explain(
        &self,
        path: StorePathHash,
        plan: &Plan,
        limits: &Limits,
        now: SystemTime,
    ) -> Option<Verdict> {
        let path = self.inventory.find(path)?;
        let removed = plan.removals.iter().find_map(|removal| match removal {
            Removal::Path(index, reason) if *index == path => Some(*reason),
            _ => None,
        });
        if let Some(reason) = removed {
            return Some(Verdict::Removed(reason));
        }
        let (by, used) = (self.used_by[path] as usize, self.effective_use(path));
        let kept = match self.pinned[path] {
            Some((pin, by)) => KeepReason::Pinned { pin: pin as usize, by: by as usize },
            None if is_after(used, now.checked_sub(limits.grace)) => {
                KeepReason::Recent { by, used }
            }
            None => KeepReason::WithinLimits { by, used },
        };
        Some(Verdict::Kept(kept))
    }
}

/// Whether a use came after `time`. `None` is a time before the epoch.
fn is_after(used: SystemTime, time: Option<SystemTime>) -> bool {
    time.is_none_or(|time| used > time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::StoredPath;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * DAY
    }

    /// A path of `size` bytes that was last used `days` days ago.
    fn path(number: u8, size: u64, days: u32, references: &[u32]) -> StoredPath {
        let name = format!("{}-x", StorePathHash::new([number; 20]));
        StoredPath {
            store_path: name.parse().unwrap(),
            nar: None,
            log: None,
            references: references.into(),
            side_files: Vec::new(),
            size,
            nar_size: 1,
            mirrored: false,
            uploaded: now() - DAY * days,
            used: now() - DAY * days,
        }
    }

    /// The indices of the paths that are removed.
    fn removed(paths: Vec<StoredPath>, max_size: Option<u64>, max_age: Option<u32>) -> Vec<usize> {
        let limits = Limits { max_size, max_age: max_age.map(|days| DAY * days), grace: DAY };
        let inventory = Inventory::new(paths, Vec::new(), Vec::new());
        let plan = Analysis::new(&inventory, &[]).plan(&limits, now());
        let paths = plan.removals.iter().map(|removal| match removal {
            Removal::Path(path, _) => *path,
            _ => panic!("the inventory has only paths"),
        });
        paths.collect()
    }

    #[test]
    fn paths_are_removed_only_above_the_size_limit_and_down_to_90_percent() {
        let paths = || (0..10).map(|n| path(n, 100, 20 - u32::from(n), &[])).collect::<Vec<_>>();
        assert!(removed(paths(), Some(1000), None).is_empty());
        assert_eq!(removed(paths(), Some(999), None), [0, 1]);
        assert_eq!(removed(paths(), Some(500), None), [0, 1, 2, 3, 4, 5]);
        assert_eq!(removed(paths(), Some(0), None), (0..10).collect::<Vec<_>>());
        // Paths that are too old are removed first, which may be enough.
        assert_eq!(removed(paths(), Some(999), Some(19)), [0]);
        assert!(removed(paths(), None, None).is_empty());
        assert!(removed(Vec::new(), Some(0), Some(1)).is_empty());
    }

    #[test]
    fn the_largest_possible_limit_does_not_overflow() {
        let paths = vec![path(1, u64::MAX / 2, 9, &[]), path(2, u64::MAX / 2, 8, &[])];
        assert!(removed(paths.clone(), Some(u64::MAX), None).is_empty());
        assert_eq!(removed(paths, Some(u64::MAX - 2), None), [0]);
    }

    #[test]
    fn a_reference_is_as_young_as_its_referrers_and_is_removed_after_them() {
        let paths = || vec![path(1, 1, 30, &[]), path(2, 1, 10, &[0]), path(3, 1, 20, &[])];
        assert_eq!(removed(paths(), None, Some(15)), [2]);
        assert_eq!(removed(paths(), None, Some(9)), [2, 1, 0]);
        assert_eq!(removed(paths(), Some(2), None), [2, 1]);
    }

    #[test]
    fn paths_that_refer_to_each_other_are_removed_together_or_not_at_all() {
        let paths = vec![path(1, 1, 30, &[1]), path(2, 1, 20, &[0]), path(3, 1, 25, &[])];
        assert_eq!(removed(paths.clone(), None, Some(22)), [2]);
        let mut both = removed(paths.clone(), Some(2), None);
        assert_eq!(both.remove(0), 2);
        both.sort_unstable();
        assert_eq!(both, [0, 1]);
        let mut all = removed(paths, None, Some(2));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
    }

    #[test]
    fn a_wrong_clock_removes_nothing() {
        let paths = vec![path(1, 1, 30, &[])];
        let inventory = Inventory::new(paths, Vec::new(), Vec::new());
        let analysis = Analysis::new(&inventory, &[]);
        let limits = Limits { max_size: Some(0), max_age: Some(DAY), grace: DAY };
        // A clock that is earlier than all uses.
        let early = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(analysis.plan(&limits, early).removals, []);
        let forever = Limits { max_size: None, max_age: Some(Duration::MAX), grace: DAY };
        assert_eq!(analysis.plan(&forever, now()).removals, []);
        let forever = Limits { max_size: Some(0), max_age: None, grace: Duration::MAX };
        assert_eq!(analysis.plan(&forever, now()).removals, []);
    }
}
