//! The progress of an operation on the whole cache.

/// The progress of a collection, a verification or a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The number of objects that have been listed; the total is not known.
    Found(u64),
    /// The work after listing. A collection counts removals, a verification bytes read, and a
    /// migration bytes copied.
    Done {
        /// The work that is done.
        done: u64,
        /// The total work.
        total: u64,
    },
}
