//! A readable preview of a plan: one line for each group of objects that are removed together.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use super::plan::{Analysis, Plan, Reason, Removal};
use crate::nix::{CachePath, StorePath};

/// A removed store path with its NAR and side files, or an object that is removed alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRemoval<'a> {
    /// The name of the path or object.
    pub name: RemovalName<'a>,
    /// Bytes that the removal frees. A NAR that several paths share counts for the last of them.
    pub size: u64,
    /// The reason for the removal.
    pub reason: Reason,
    /// The effective last use of the path, or the last use of the object.
    pub used: SystemTime,
}

/// The name of a removed path or object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalName<'a> {
    /// A store path.
    Path(&'a StorePath),
    /// An object that is removed alone.
    Object(&'a CachePath),
}

/// The sum of all removals for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RemovalSum {
    /// The reason.
    pub reason: Reason,
    /// The number of store paths.
    pub paths: usize,
    /// The number of objects that are removed without a store path.
    pub objects: usize,
    /// Bytes in the paths and objects.
    pub bytes: u64,
}

impl Plan {
    /// Groups the removals by path, in the order of the plan.
    pub fn planned_removals<'a>(&self, analysis: &Analysis<'a>) -> Vec<PlannedRemoval<'a>> {
        let inventory = analysis.inventory();
        let mut planned = Vec::new();
        let mut last_owner = HashMap::new();
        for removal in &self.removals {
            if let Removal::Path(index, reason) = *removal {
                let path = &inventory.paths[index];
                last_owner.extend(inventory.shared_by(index).map(|object| (object, planned.len())));
                planned.push(PlannedRemoval {
                    name: RemovalName::Path(&path.store_path),
                    size: path.size,
                    reason,
                    used: analysis.effective_use(index),
                });
            }
        }
        for removal in &self.removals {
            let (object, reason) = match *removal {
                Removal::Path(..) => continue,
                Removal::Shared(index, reason) => {
                    let object = &inventory.shared[index];
                    if let Some(&owner) = last_owner.get(&index) {
                        planned[owner].size += object.size;
                        continue;
                    }
                    (object, reason)
                }
                Removal::Unowned(index, reason) => (&inventory.unowned[index], reason),
            };
            let name = RemovalName::Object(&object.path);
            planned.push(PlannedRemoval { name, size: object.size, reason, used: object.used });
        }
        planned
    }
}

impl RemovalSum {
    /// Sums up removals for each reason that occurs.
    pub fn by_reason(planned: &[PlannedRemoval<'_>]) -> Vec<Self> {
        let mut sums: Vec<Self> = Vec::new();
        for PlannedRemoval { name, size, reason, .. } in planned {
            let index = sums.iter().position(|sum| sum.reason == *reason).unwrap_or_else(|| {
                sums.push(Self { reason: *reason, paths: 0, objects: 0, bytes: 0 });
                sums.len() - 1
            });
            let sum = &mut sums[index];
            match name {
                RemovalName::Path(_) => sum.paths += 1,
                RemovalName::Object(_) => sum.objects += 1,
            }
            sum.bytes += size;
        }
        sums
    }
}
