//! Aborts unfinished multipart uploads: a killed daemon leaves them, they are invisible, and the
//! server keeps (and charges for) them until they are aborted.

use std::time::{Duration, SystemTime};

use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use serde::Deserialize;

use super::bucket::{Bucket, NOT_IMPLEMENTED, OWN_FOLDER, failed};
use crate::nix::CachePath;
use crate::store::{RemoteTrouble, StoreError};

/// The operation in errors.
const DOING: &str = "listing the unfinished uploads of";

/// The longest list that is read of a server. One page has a thousand uploads.
const PAGE_LIMIT: usize = 4 << 20;

/// What a server answers (`ListMultipartUploads` in Amazon's API reference).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadsPage {
    #[serde(default)]
    upload: Vec<Unfinished>,
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Unfinished {
    key: String,
    upload_id: String,
    initiated: String,
}

/// Aborts uploads that were started longer than `age` ago, and returns their number, or `None` if
/// the server cannot list them.
pub(super) async fn sweep(bucket: &Bucket, age: Duration) -> Result<Option<usize>, StoreError> {
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
        let Some(page) = page(bucket.ask(DOING, &parameters, PAGE_LIMIT).await)? else {
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

/// Whether a daemon can have started this upload: other programs may use the same bucket.
fn is_ours(prefix: &str, key: &str) -> bool {
    let Some(key) = key.strip_prefix(prefix) else {
        return false;
    };
    // An upload with another name than that of a cache object belongs to another program.
    key.starts_with(OWN_FOLDER) || key.parse::<CachePath>().is_ok_and(|path| path.key() == key)
}

impl UploadsPage {
    /// Where the next page begins, if there is one. A server that sends the same one again is not
    /// followed for ever.
    fn after(self, key: &str, upload_id: &str) -> Option<(String, String)> {
        let next = (self.next_key_marker?, self.next_upload_id_marker.unwrap_or_default());
        let goes_on = (next.0.as_str(), next.1.as_str()) != (key, upload_id);
        (self.is_truncated && goes_on).then_some(next)
    }
}

async fn abort(s3: &AmazonS3, upload: &Unfinished) -> Result<(), StoreError> {
    let failed = failed("aborting the upload of", &upload.key);
    let Ok(path) = Path::parse(&upload.key) else {
        return Ok(());
    };
    s3.abort_multipart(&path, &upload.upload_id).await.map_err(failed)
}

/// The page; none where the server cannot list unfinished uploads.
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
        trouble: RemoteTrouble::Failed,
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_servers_write_them() {
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
    fn uploads_of_other_programs_are_left_alone() {
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
    fn a_page_that_comes_again_is_the_last() {
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
