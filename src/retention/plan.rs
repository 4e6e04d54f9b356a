//! Decides what is removed, and why: a pure function of the inventory, the pins, the limits and the
//! time.
//!
//! The *effective* last use of a path is the latest use of the path itself and of all its direct
//! and indirect referrers. So no path is older than its referrers, and removing the oldest paths
//! leaves closures whole: the removed paths always include all referrers of each of them.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::pins::Pin;
use crate::inventory::{Inventory, groups, reach};
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

/// Where a collection for space stops, in percent of the limit: or the next upload would start the
/// next one.
const DOWN_TO_PERCENT: u64 = 90;

/// The reason for a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It has not been used for longer than the maximum age.
    Age,
    /// The cache is too large, and it has been unused the longest.
    Size,
    /// No path needs it: a NAR without a narinfo, most often an upload that was given up.
    Orphan,
    /// An operator requested it.
    Request,
}

impl Reason {
    /// The reason in one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Size => "size",
            Self::Orphan => "orphan",
            Self::Request => "request",
        }
    }
}

/// A removal, by its index in the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// A narinfo with its side files.
    Path(usize, Reason),
    /// A NAR or a log, with its side files.
    Shared(usize, Reason),
    /// An object that belongs to no path here.
    Unowned(usize, Reason),
}

/// The removals, in order: referrers before their references, NARs after their narinfos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The removals.
    pub removals: Vec<Removal>,
    /// Bytes in all objects.
    pub size_before: u64,
    /// The bytes of the kept objects.
    pub size_after: u64,
    /// The limit.
    pub max_size: Option<u64>,
}

impl Plan {
    /// By how many bytes the cache would still be above its limit.
    pub fn over_limit(&self) -> u64 {
        self.max_size.map_or(0, |limit| self.size_after.saturating_sub(limit))
    }
}

/// The reason for keeping a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// A pin holds this path, which is or needs the other.
    Pinned {
        /// The pin's place.
        pin: usize,
        /// The pinned path's place.
        by: usize,
    },
    /// It was used within the time of grace: this path, which is or needs the other.
    Recent {
        /// The place of the path that was used.
        by: usize,
        /// When.
        used: SystemTime,
    },
    /// No limit is exceeded. The last use was that of this path.
    WithinLimits {
        /// The place of the path that was used.
        by: usize,
        /// When.
        used: SystemTime,
    },
}

/// The decision of a plan about one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The path is removed.
    Goes(Reason),
    /// The path is kept.
    Stays(Kept),
}

/// The results that depend only on the graph of references.
#[derive(Debug)]
pub struct Analysis<'a> {
    inventory: &'a Inventory,
    /// For each path, the path through which it was used last: itself, or one that needs it.
    used_by: Vec<u32>,
    /// For each path, the pin that holds it and the path that the pin names.
    pinned: Vec<Option<(u32, u32)>>,
}

/// A set of paths that can only be removed together, and its last use.
struct Candidate {
    used: SystemTime,
    /// What refers to something comes before it.
    rank: Reverse<usize>,
    what: Unit,
}

enum Unit {
    /// Paths that refer to each other; nearly always one.
    Paths(Vec<u32>),
    Unowned(usize),
}

impl<'a> Analysis<'a> {
    /// Follows the references from the most recently used paths and from the pins.
    pub fn new(inventory: &'a Inventory, pins: &[Pin]) -> Self {
        let count = inventory.paths.len();
        let place = |index: usize| u32::try_from(index).expect("fewer paths than u32 has numbers");
        let mut latest_first: Vec<u32> = (0..place(count)).collect();
        latest_first.sort_by_key(|&path| Reverse(inventory.used(path as usize)));
        let mut used_by = vec![u32::MAX; count];
        for &path in &latest_first {
            // The first to reach a path is the one that was used last.
            reach(inventory, path, |at| {
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
                reach(inventory, place(root), |at| {
                    let first = pinned[at].is_none();
                    if first {
                        pinned[at] = Some((place(number), place(root)));
                    }
                    first
                });
            }
        }
        Self { inventory, used_by, pinned }
    }

    /// When a path, or something that needs it, was used last.
    pub fn effective_use(&self, path: usize) -> SystemTime {
        self.inventory.used(self.last_user(path))
    }

    /// The path through which a path was used last: itself, or one that needs it.
    pub fn last_user(&self, path: usize) -> usize {
        self.used_by[path] as usize
    }

    /// The pin that keeps a path, and the path that it names, which is or needs the other.
    pub fn pinned_by(&self, path: usize) -> Option<(usize, usize)> {
        self.pinned[path].map(|(pin, by)| (pin as usize, by as usize))
    }

    /// What the graph was made from.
    pub fn inventory(&self) -> &'a Inventory {
        self.inventory
    }

    fn is_protected(&self, path: usize, safe_from: Option<SystemTime>) -> bool {
        self.pinned[path].is_some() || is_after(self.effective_use(path), safe_from)
    }

    /// What the limits ask to go at `now`.
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
        let goal = |limit: u64| limit / 100 * DOWN_TO_PERCENT + limit % 100 * DOWN_TO_PERCENT / 100;
        // Known when everything that is too old has gone.
        let mut target = None;
        for candidate in self.candidates(safe_from) {
            let reason = if by_age(candidate.used) {
                Reason::Age
            } else {
                let Some(limit) = limits.max_size else {
                    break;
                };
                let target = *target.get_or_insert(if size > limit { goal(limit) } else { size });
                if size <= target {
                    break;
                }
                Reason::Size
            };
            match candidate.what {
                Unit::Unowned(index) => {
                    size -= inventory.unowned[index].size;
                    removals.push(Removal::Unowned(index, reason));
                }
                Unit::Paths(paths) => {
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

    /// What may go at all, the longest unused first, and what refers to something before it.
    fn candidates(&self, safe_from: Option<SystemTime>) -> Vec<Candidate> {
        let groups = groups(self.inventory);
        let paths = groups.into_iter().enumerate().filter_map(|(rank, group)| {
            let first = *group.first()? as usize;
            // They need each other, so they are all protected or none is.
            (!self.is_protected(first, safe_from)).then(|| Candidate {
                used: self.effective_use(first),
                rank: Reverse(rank),
                what: Unit::Paths(group),
            })
        });
        let unowned = self.inventory.unowned.iter().enumerate();
        let unowned = unowned.filter(|(_, object)| !is_after(object.used, safe_from));
        let unowned = unowned.map(|(index, object)| Candidate {
            used: object.used,
            rank: Reverse(0),
            what: Unit::Unowned(index),
        });
        let mut candidates: Vec<Candidate> = paths.chain(unowned).collect();
        candidates.sort_by_key(|candidate| (candidate.used, candidate.rank));
        candidates
    }

    /// What `plan`, made with these limits at `now`, makes of a path, and why; none if it is not
    /// here.
    pub fn explain(
        &self,
        path: StorePathHash,
        plan: &Plan,
        limits: &Limits,
        now: SystemTime,
    ) -> Option<Verdict> {
        let path = self.inventory.find(path)?;
        let goes = plan.removals.iter().find_map(|removal| match removal {
            Removal::Path(index, reason) if *index == path => Some(*reason),
            _ => None,
        });
        if let Some(reason) = goes {
            return Some(Verdict::Goes(reason));
        }
        let (by, used) = (self.used_by[path] as usize, self.effective_use(path));
        let kept = match self.pinned[path] {
            Some((pin, by)) => Kept::Pinned { pin: pin as usize, by: by as usize },
            None if is_after(used, now.checked_sub(limits.grace)) => Kept::Recent { by, used },
            None => Kept::WithinLimits { by, used },
        };
        Some(Verdict::Stays(kept))
    }
}

/// Whether a use came after a time; before all time, everything did.
fn is_after(used: SystemTime, time: Option<SystemTime>) -> bool {
    time.is_none_or(|time| used > time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::HeldPath;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * DAY
    }

    /// A path of so many bytes that was last used so many days ago.
    fn path(number: u8, size: u64, days: u32, references: &[u32]) -> HeldPath {
        let name = format!("{}-x", StorePathHash::new([number; 20]));
        HeldPath {
            store_path: name.parse().unwrap(),
            nar: None,
            log: None,
            references: references.into(),
            sides: Vec::new(),
            size,
            nar_size: 1,
            mirrored: false,
            uploaded: now() - DAY * days,
            used: now() - DAY * days,
        }
    }

    /// The places of the paths that go.
    fn gone(paths: Vec<HeldPath>, max_size: Option<u64>, max_age: Option<u32>) -> Vec<usize> {
        let limits = Limits { max_size, max_age: max_age.map(|days| DAY * days), grace: DAY };
        let inventory = Inventory::new(paths, Vec::new(), Vec::new());
        let plan = Analysis::new(&inventory, &[]).plan(&limits, now());
        let paths = plan.removals.iter().map(|removal| match removal {
            Removal::Path(path, _) => *path,
            _ => panic!("there is nothing else"),
        });
        paths.collect()
    }

    #[test]
    fn at_the_limit_nothing_goes_and_above_it_as_much_as_makes_room() {
        let paths = || (0..10).map(|n| path(n, 100, 20 - u32::from(n), &[])).collect::<Vec<_>>();
        assert!(gone(paths(), Some(1000), None).is_empty());
        assert_eq!(gone(paths(), Some(999), None), [0, 1]);
        assert_eq!(gone(paths(), Some(500), None), [0, 1, 2, 3, 4, 5]);
        assert_eq!(gone(paths(), Some(0), None), (0..10).collect::<Vec<_>>());
        // Paths that are too old are removed first, which may be enough.
        assert_eq!(gone(paths(), Some(999), Some(19)), [0]);
        assert!(gone(paths(), None, None).is_empty());
        assert!(gone(Vec::new(), Some(0), Some(1)).is_empty());
    }

    #[test]
    fn the_largest_limit_is_no_trouble() {
        let paths = vec![path(1, u64::MAX / 2, 9, &[]), path(2, u64::MAX / 2, 8, &[])];
        assert!(gone(paths.clone(), Some(u64::MAX), None).is_empty());
        assert_eq!(gone(paths, Some(u64::MAX - 2), None), [0]);
    }

    #[test]
    fn what_is_needed_is_as_young_as_what_needs_it_and_goes_after_it() {
        let paths = || vec![path(1, 1, 30, &[]), path(2, 1, 10, &[0]), path(3, 1, 20, &[])];
        assert_eq!(gone(paths(), None, Some(15)), [2]);
        assert_eq!(gone(paths(), None, Some(9)), [2, 1, 0]);
        assert_eq!(gone(paths(), Some(2), None), [2, 1]);
    }

    #[test]
    fn paths_that_need_each_other_go_together_or_not_at_all() {
        let paths = vec![path(1, 1, 30, &[1]), path(2, 1, 20, &[0]), path(3, 1, 25, &[])];
        assert_eq!(gone(paths.clone(), None, Some(22)), [2]);
        let mut both = gone(paths.clone(), Some(2), None);
        assert_eq!(both.remove(0), 2);
        both.sort_unstable();
        assert_eq!(both, [0, 1]);
        let mut all = gone(paths, None, Some(2));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
    }

    #[test]
    fn a_clock_that_is_wrong_takes_nothing_away() {
        let paths = vec![path(1, 1, 30, &[])];
        let inventory = Inventory::new(paths, Vec::new(), Vec::new());
        let analysis = Analysis::new(&inventory, &[]);
        let limits = Limits { max_size: Some(0), max_age: Some(DAY), grace: DAY };
        // Before everything that was used.
        let early = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(analysis.plan(&limits, early).removals, []);
        let forever = Limits { max_size: None, max_age: Some(Duration::MAX), grace: DAY };
        assert_eq!(analysis.plan(&forever, now()).removals, []);
        let forever = Limits { max_size: Some(0), max_age: None, grace: Duration::MAX };
        assert_eq!(analysis.plan(&forever, now()).removals, []);
    }
}
