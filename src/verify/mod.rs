//! Verifies all objects of a cache.
//!
//! `survey` lists the objects. Two threads of the lowest priority then `examine` them, each NAR
//! once with all narinfos that name it. Uploads and collections continue meanwhile, so each suspect
//! is examined once more, alone, and only the second result counts: for the `report`, and for the
//! quarantine.

mod examine;
mod report;
mod survey;
mod verifier;

pub(crate) use report::{Damage, DamageKind, Note, NoteKind, VerifyReport};
pub(crate) use verifier::{Verifier, VerifyOptions};
