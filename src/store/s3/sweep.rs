//! Aborts unfinished multipart uploads: a killed daemon leaves them, they are invisible, and the
//! server keeps (and charges for) them until they are aborted.

use std::time::{Duration, SystemTime};

use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use serde::Deserialize;

use super::bucket::{BucketClient, NOT_IMPLEMENTED, OWN_PREFIX, failed};
use crate::nix::CachePath;
use crate::store::{RemoteFailure, StoreError};

/// The operation in errors.
const DOING: &str = "listing the unfinished uploads of";

/// Maximum length of a page, in bytes. A page has a thousand uploads.
const UPLOADS_PAGE_LIMIT: usize = 4 << 20;

/// A page of unfinished uploads (`ListMultipartUploads` in Amazon's API reference).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadsPage {
    #[serde(default)]
    upload: Vec<UnfinishedUpload>,
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnfinishedUpload {
    key: String,
    upload_id: String,
    initiated: String,
}

/// Aborts uploads that were started longer than `age` ago, and returns their number, or `None` if
/// the server cannot list them.
pub(super) async fn sweep(
    bucket: &BucketClient,
    age: Duration,
) -> Result<Option<usize>, StoreError> {
    let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut swept = 0;
    let (mut key_marker, mut upload_marker) = (String::new(), String::new());
    loop {
        let mut parameters = vec![("uploads", ""), ("prefix", bucket.prefix())];
        if !key_marker.is_empty() {
            parameters.extend([
                ("key-marker", key_marker.as_str()),
                ("upload-id-marker", upload_marker.as_str()),
            ]);
        }
        let Some(page) = page(bucket.get_query(DOING, &parameters, UPLOADS_PAGE_LIMIT).await)?
        else {
            return Ok(None);
        };
        for upload in &page.upload {
            let started = humantime::parse_rfc3339_weak(&upload.initiated).ok();
            if started.is_some_and(|started| started <= before)
                && is_ours(bucket.prefix(), &upload.key)
            {
                abort(bucket.s3(), upload).await?;
                swept += 1;
            }
        }
        match page.after(&key_marker, &upload_marker) {
            Some(next) => (key_marker, upload_marker) = next,
            None => return Ok(Some(swept)),
        }
    }
}

/// Whether a daemon may have started this upload. Other programs may use the same bucket.
fn is_ours(prefix: &str, key: &str) -> bool {
    let Some(key) = key.strip_prefix(prefix) else {
        return false;
    };
    // An upload with another name than that of a cache object belongs to another program.
    key.starts_with(OWN_PREFIX) || key.parse::<CachePath>().is_ok_and(|path| path.key() == key)
}

impl UploadsPage {
    /// Returns the markers of the next page, or `None` after the last page, and if the server
    /// repeats a page.
    fn after(self, key: &str, upload_id: &str) -> Option<(String, String)> {
        let next = (self.next_key_marker?, self.next_upload_id_marker.unwrap_or_default());
        let goes_on = (next.0.as_str(), next.1.as_str()) != (key, upload_id);
        (self.is_truncated && goes_on).then_some(next)
    }
}

async fn abort(s3: &AmazonS3, upload: &UnfinishedUpload) -> Result<(), StoreError> {
    let failed = failed("aborting the upload of", &upload.key);
    let Ok(path) = Path::parse(&upload.key) else {
        return Ok(());
    };
    s3.abort_multipart(&path, &upload.upload_id).await.map_err(failed)
}

/// Parses a page. Returns `None` if the server cannot list unfinished uploads.
fn page(answer: Result<Vec<u8>, StoreError>) -> Result<Option<UploadsPage>, StoreError> {
    let text = match answer {
        Ok(text) => text,
        Err(StoreError::Remote { source, .. }) if source.to_string() == NOT_IMPLEMENTED => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let page = quick_xml::de::from_reader(text.as_slice());
    page.map(Some).map_err(|error| StoreError::Remote {
        doing: DOING,
        key: "the bucket".to_owned(),
        failure: RemoteFailure::Failed,
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_several_servers_are_parsed() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Bucket>cache</Bucket><KeyMarker/><UploadIdMarker/>
            <NextKeyMarker>nar/a</NextKeyMarker><NextUploadIdMarker>1</NextUploadIdMarker>
            <Prefix>x/</Prefix><MaxUploads>1000</MaxUploads><IsTruncated>true</IsTruncated>
            <Upload><Initiated>2026-01-02T03:04:05.000Z</Initiated><Initiator><ID>k</ID></Initiator>
            <Key>nar/a</Key><UploadId>1</UploadId><StorageClass>STANDARD</StorageClass></Upload>
            <Upload><Key>nar/b</Key><UploadId>2</UploadId><Initiated>2026-01-02T03:04:06.000Z</Initiated></Upload>
            </ListMultipartUploadsResult>"#;
        let page: UploadsPage = quick_xml::de::from_str(text).unwrap();
        assert!(page.is_truncated);
        assert_eq!(page.next_key_marker.as_deref(), Some("nar/a"));
        let found: Vec<_> = page.upload.iter().map(|it| (&*it.key, &*it.upload_id)).collect();
        assert_eq!(found, [("nar/a", "1"), ("nar/b", "2")]);
        assert!(humantime::parse_rfc3339_weak(&page.upload[0].initiated).is_ok());
        assert_eq!(page.after("", ""), Some(("nar/a".to_owned(), "1".to_owned())));
    }

    #[test]
    fn uploads_of_other_programs_are_not_aborted() {
        let nar = "nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz";
        assert!(is_ours("", nar) && is_ours("a/b/", &format!("a/b/{nar}")));
        assert!(is_ours("", ".nix-stored/quarantine/x"));
        for (prefix, key) in
            [("", "backup.tar"), ("", "nar/a"), ("a/", nar), ("a/", "b/x"), ("", "")]
        {
            assert!(!is_ours(prefix, key), "{prefix} {key}");
        }
    }

    #[test]
    fn a_repeated_page_is_the_last() {
        let page = |is_truncated| UploadsPage {
            upload: Vec::new(),
            is_truncated,
            next_key_marker: Some("nar/a".to_owned()),
            next_upload_id_marker: Some("1".to_owned()),
        };
        assert_eq!(page(true).after("nar/a", "1"), None);
        assert_eq!(page(false).after("", ""), None);
        assert!(page(true).after("nar/a", "0").is_some());
    }

    #[test]
    fn a_list_may_be_empty() {
        let text = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>";
        let page: UploadsPage = quick_xml::de::from_str(text).unwrap();
        assert!(page.upload.is_empty() && !page.is_truncated);
    }
}
