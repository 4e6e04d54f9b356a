//! A readable preview of a plan: one line for each group of objects that are removed together.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use super::plan::{Analysis, Plan, Reason, Removal};
use crate::nix::{CachePath, StorePath};

/// A removed store path with its NAR and side files, or an object that is removed alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Going<'a> {
    /// What it is called.
    pub name: Name<'a>,
    /// Bytes that are free when it is gone. A NAR that several paths share counts for the last.
    pub size: u64,
    /// The reason for the removal.
    pub reason: Reason,
    /// When it, or something that needs it, was used last.
    pub used: SystemTime,
}

/// The name of a removed path or object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// A store path.
    Path(&'a StorePath),
    /// An object that is removed without a store path.
    Object(&'a CachePath),
}

/// The sum of all removals for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// The reason.
    pub reason: Reason,
    /// Store paths.
    pub paths: usize,
    /// Objects that go without a store path.
    pub objects: usize,
    /// Bytes in all of it.
    pub bytes: u64,
}

impl Plan {
    /// The removals, in the order of the plan.
    pub fn going<'a>(&self, analysis: &Analysis<'a>) -> Vec<Going<'a>> {
        let inventory = analysis.inventory();
        let mut going = Vec::new();
        let mut last_owner = HashMap::new();
        for removal in &self.removals {
            if let Removal::Path(index, reason) = *removal {
                let path = &inventory.paths[index];
                last_owner.extend(inventory.shared_by(index).map(|object| (object, going.len())));
                going.push(Going {
                    name: Name::Path(&path.store_path),
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
                        going[owner].size += object.size;
                        continue;
                    }
                    (object, reason)
                }
                Removal::Unowned(index, reason) => (&inventory.unowned[index], reason),
            };
            let name = Name::Object(&object.path);
            going.push(Going { name, size: object.size, reason, used: object.used });
        }
        going
    }
}

impl Sum {
    /// Sums of `going` for each reason that there is.
    pub fn by_reason(going: &[Going<'_>]) -> Vec<Self> {
        let mut sums: Vec<Self> = Vec::new();
        for Going { name, size, reason, .. } in going {
            let place = sums.iter().position(|sum| sum.reason == *reason).unwrap_or_else(|| {
                sums.push(Self { reason: *reason, paths: 0, objects: 0, bytes: 0 });
                sums.len() - 1
            });
            let sum = &mut sums[place];
            match name {
                Name::Path(_) => sum.paths += 1,
                Name::Object(_) => sum.objects += 1,
            }
            sum.bytes += size;
        }
        sums
    }
}
