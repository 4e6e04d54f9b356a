//! Copies everything from another cache, for example from a directory into a bucket.
//!
//! Each object is verified like an upload. The narinfo of a path is stored after its NAR and its
//! references, so the target is a valid cache at every moment: clients can use it meanwhile, and an
//! interrupted migration can be repeated.

mod migration;
mod report;

pub(crate) use migration::migrate;
pub(crate) use report::MigrateReport;
