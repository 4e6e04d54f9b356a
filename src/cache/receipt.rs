//! The facts of an accepted upload, for the audit log.

use crate::nix::Sha256Hash;
use crate::store::Stored;

/// The facts of an accepted upload that are logged.
#[derive(Debug, Clone)]
pub struct UploadReceipt {
    /// Whether the object is new.
    pub stored: Stored,
    /// The stored length, in bytes.
    pub size: u64,
    /// The store path of a narinfo.
    pub store_path: Option<String>,
    /// SHA-256 of the NAR's file.
    pub file_hash: Option<Sha256Hash>,
    /// SHA-256 of the NAR, or `None` if the NAR was not unpacked.
    pub nar_hash: Option<Sha256Hash>,
    /// The names of the trusted keys that have signed the narinfo, if trusted keys are set.
    pub signed_by: Option<String>,
    /// The key names in the signatures, if no trusted keys are set.
    pub unchecked_keys: Option<String>,
}

impl UploadReceipt {
    /// The receipt of an object that is neither a NAR nor a narinfo.
    pub(crate) fn plain(stored: Stored, size: u64) -> Self {
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
