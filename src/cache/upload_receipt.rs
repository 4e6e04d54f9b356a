//! The facts of an accepted upload, for the audit log.

use crate::nix::Sha256Hash;
use crate::store::Stored;

/// The facts of an accepted upload that are logged.
#[derive(Debug, Clone)]
pub struct UploadReceipt {
    /// Whether the object is new.
    pub stored: Stored,
    /// Its length, as it is stored.
    pub size: u64,
    /// The store path, if it is the narinfo of one.
    pub store_path: Option<String>,
    /// SHA-256 of the NAR's file.
    pub file_hash: Option<Sha256Hash>,
    /// SHA-256 of the NAR, or `None` if the NAR was not unpacked.
    pub nar_hash: Option<Sha256Hash>,
    /// The trusted keys that have signed it, where there are any to compare with.
    pub signed_by: Option<String>,
    /// The key names in the signatures, if no trusted keys are set.
    pub unchecked_keys: Option<String>,
}

impl UploadReceipt {
    /// An object without facts about a NAR.
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
