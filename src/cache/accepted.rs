//! What there is to say of an upload that was taken.

use crate::nix::Sha256Hash;
use crate::store::Stored;

/// An upload that was taken, as the log tells it.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Whether the object is new.
    pub stored: Stored,
    /// Its length, as it is stored.
    pub size: u64,
    /// The store path, if it is the narinfo of one.
    pub store_path: Option<String>,
    /// SHA-256 of the NAR's file.
    pub file_hash: Option<Sha256Hash>,
    /// SHA-256 of the NAR; none where nobody looked into it.
    pub nar_hash: Option<Sha256Hash>,
    /// The trusted keys that have signed it, where there are any to compare with.
    pub signed_by: Option<String>,
    /// The names of the keys that are said to have signed it, where there are none to compare with.
    pub unchecked_keys: Option<String>,
}

impl Accepted {
    /// An object that says nothing of a NAR.
    pub(super) fn plain(stored: Stored, size: u64) -> Self {
        Self {
            stored,
            size,
            store_path: None,
            file_hash: None,
            nar_hash: None,
            signed_by: None,
            unchecked_keys: None,
        }
    }
}
