//! The metadata of an object in a bucket.

use std::time::SystemTime;

use object_store::ObjectMeta;

use crate::store::Metadata;

/// The metadata of an object in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub size: u64,
    pub modified: SystemTime,
    /// The entity tag as the server sent it.
    pub etag: Option<String>,
}

impl From<&ObjectMeta> for Meta {
    fn from(meta: &ObjectMeta) -> Self {
        Self { size: meta.size, modified: meta.last_modified.into(), etag: meta.e_tag.clone() }
    }
}

impl Meta {
    /// Returns the metadata for a client. `used` is the last recorded use.
    pub(super) fn to_metadata(&self, used: Option<SystemTime>) -> Metadata {
        let modified = self.modified;
        let etag = match &self.etag {
            Some(etag) if etag.starts_with('"') => etag.clone(),
            Some(etag) => format!("\"{}\"", etag.trim_start_matches("W/").trim_matches('"')),
            // Not every server sends entity tags.
            None => {
                let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                format!("\"{}-{}\"", self.size, since.as_micros())
            }
        };
        Metadata {
            size: self.size,
            modified,
            used: used.map_or(modified, |used| used.max(modified)),
            etag: etag.into(),
        }
    }
}
