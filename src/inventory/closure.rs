//! The size of a closure.

use super::contents::Inventory;
use super::graph::visit_reachable;
use crate::nix::StorePath;

/// The part of the closure of some paths that is in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// For each of the given paths, whether it is in the cache.
    pub present: Vec<bool>,
    /// The number of paths in the closure.
    pub paths: usize,
    /// Bytes in the closure, including NARs, logs and side files.
    pub bytes: u64,
}

impl Inventory {
    /// Computes the closure of `paths`.
    pub fn closure_of(&self, paths: &[StorePath]) -> Closure {
        let roots: Vec<Option<usize>> = paths.iter().map(|path| self.find(path.hash())).collect();
        let mut paths = vec![false; self.paths.len()];
        for root in roots.iter().flatten() {
            let root = u32::try_from(*root).expect("fewer paths than u32 has numbers");
            visit_reachable(self, root, |at| !std::mem::replace(&mut paths[at], true));
        }
        let mut shared = vec![false; self.shared.len()];
        let mut closure =
            Closure { present: roots.iter().map(Option::is_some).collect(), paths: 0, bytes: 0 };
        for path in (0..paths.len()).filter(|&path| paths[path]) {
            closure.paths += 1;
            closure.bytes += self.paths[path].size;
            for object in self.shared_by(path) {
                if !std::mem::replace(&mut shared[object], true) {
                    closure.bytes += self.shared[object].size;
                }
            }
        }
        closure
    }
}
