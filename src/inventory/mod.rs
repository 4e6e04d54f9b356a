//! The contents of a store as a graph: paths, their references, and the objects that belong to
//! them.
//!
//! `read` reads all narinfos of a store into an [`Inventory`]; `graph`, `closure` and `stats`
//! evaluate. `measure` only adds up sizes.

mod closure;
mod contents;
mod graph;
mod measure;
mod progress;
mod read;
mod stats;

pub use closure::Closure;
pub use contents::{Inventory, InventoryError, StoredObject, StoredPath, Unparsed};
pub(crate) use graph::{reference_groups, visit_reachable};
pub use measure::StoreSize;
pub use progress::Progress;
pub use stats::Stats;
