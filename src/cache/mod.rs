//! The core: a local binary cache. What it accepts has been verified, and what it serves is complete.
//!
//! `state` has what all operations share. `objects` has the three operations of a client,
//! [`Cache::get`], [`Cache::head`] and [`Cache::put`]; `nar`, `narinfo` and `side_file` store the
//! three kinds of uploads. A narinfo makes a path visible, so it is accepted only if it agrees with
//! the `nar_facts` of its NAR and, if trusted keys are configured, has valid `signatures`. `narinfo_cache`
//! keeps frequently requested narinfos in memory, and `uses` records uses for collections.
//!
//! The cache knows nothing of upstreams, pages, collections or commands: those hold a [`Cache`].

mod audit;
mod nar;
mod nar_facts;
mod narinfo;
mod narinfo_cache;
mod objects;
mod receipt;
mod side_file;
mod state;
mod signatures;
mod uses;

pub use crate::ingest::{BodyError, PutError};
pub use crate::unpack::UnpackError;
pub use audit::Actor;
pub(crate) use nar::{Inspected, inspect};
pub(crate) use nar_facts::{NarContents, NarFacts, check_against_nar};
pub(crate) use narinfo::Adopted;
pub use receipt::UploadReceipt;
pub use state::{Cache, GRACE};
#[cfg(feature = "upstream")]
pub(crate) use {nar::Received, narinfo::StoreNarInfo, objects::linked_nar};
