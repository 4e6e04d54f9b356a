//! Lists a bucket page by page (`ListObjectsV2` in Amazon's API reference).
//!
//! `object_store` ends a listing with an error at the first key that it does not accept as a path
//! (`a//b`, `nar/.`). In a bucket that other programs share, such a key would stop every
//! collection. So the pages are parsed here, and any key is accepted.

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::bucket::BucketClient;
use super::meta::Meta;
use crate::store::{RemoteFailure, StoreError};

/// Maximum length of a page, in bytes. A page of a thousand keys of maximum length
/// takes about 2 MB.
const LIST_PAGE_LIMIT: usize = 8 << 20;

/// The number of pages without keys that are accepted in a row. A server that reads a thousand keys for
/// each page, and leaves out those of deleted objects, sends such pages after a large collection.
const EMPTY_PAGES_LIMIT: u32 = 1000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListPage {
    /// Every server repeats this parameter, so another document is not taken for an empty list.
    #[expect(dead_code, reason = "it has to be there")]
    name: String,
    #[serde(default)]
    contents: Vec<ListEntry>,
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
    encoding_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListEntry {
    key: String,
    size: u64,
    last_modified: String,
    #[serde(rename = "ETag")]
    etag: Option<String>,
}

/// The position of a listing.
struct ListPosition {
    token: Option<String>,
    /// The last key so far. Keys are sorted, so a key that is not greater is a repetition.
    last: String,
    /// The number of pages without keys since the last key.
    empty_pages: u32,
    ended: bool,
}

impl BucketClient {
    /// Lists the objects whose keys begin with `prefix`. The keys are without the prefix of the
    /// bucket.
    pub(super) fn list(&self, prefix: &str) -> BoxStream<'_, Result<(String, Meta), StoreError>> {
        let whole = format!("{}{prefix}", self.prefix());
        let position =
            ListPosition { token: None, last: String::new(), empty_pages: 0, ended: false };
        let pages = stream::try_unfold(position, move |position| {
            let whole = whole.clone();
            async move {
                if position.ended {
                    return Ok(None);
                }
                self.page(&whole, position).await.map(Some)
            }
        });
        pages.map_ok(|entries| stream::iter(entries).map(Ok)).try_flatten().boxed()
    }

    /// Returns the metadata of an object as the server lists it, or `None` if the server does not
    /// list it.
    pub(super) async fn find_listed(&self, key: &str) -> Result<Option<Meta>, StoreError> {
        let mut listed = self.list(key);
        while let Some((found, meta)) = listed.try_next().await? {
            if found == key {
                return Ok(Some(meta));
            }
            if found.as_str() > key {
                break;
            }
        }
        Ok(None)
    }

    async fn page(
        &self,
        prefix: &str,
        mut position: ListPosition,
    ) -> Result<(Vec<(String, Meta)>, ListPosition), StoreError> {
        let mut parameters = vec![("list-type", "2"), ("encoding-type", "url")];
        if !prefix.is_empty() {
            parameters.push(("prefix", prefix));
        }
        if let Some(token) = &position.token {
            parameters.push(("continuation-token", token));
        }
        let text = self.get_query("listing", &parameters, LIST_PAGE_LIMIT).await?;
        let page: ListPage = quick_xml::de::from_reader(text.as_slice())
            .map_err(|error| failed(format!("sent a list that does not parse: {error}")))?;
        let encoded = page.encoding_type.as_deref() == Some("url");
        position.empty_pages = if page.contents.is_empty() { position.empty_pages + 1 } else { 0 };
        let mut entries = Vec::with_capacity(page.contents.len());
        for entry in page.contents {
            let key = if encoded { decoded(&entry.key) } else { entry.key };
            if key <= position.last {
                continue;
            }
            let modified = humantime::parse_rfc3339_weak(&entry.last_modified);
            let modified = modified.map_err(|error| {
                failed(format!("listed “{}” with the time {}: {error}", key, entry.last_modified))
            })?;
            let meta = Meta { size: entry.size, modified, etag: entry.etag };
            // Keys outside the prefix were not requested.
            if let Some(own) = key.strip_prefix(self.prefix()) {
                entries.push((own.to_owned(), meta));
            }
            position.last = key;
        }
        position.ended = !page.is_truncated;
        if !position.ended {
            let next = page.next_continuation_token.filter(|token| !token.is_empty());
            let next = next.ok_or_else(|| {
                failed("sent an incomplete list without a continuation token".to_owned())
            })?;
            let repeats_keys = entries.is_empty() && position.empty_pages == 0;
            if repeats_keys || position.token.as_ref() == Some(&next) {
                return Err(failed("sends the same list repeatedly".to_owned()));
            }
            if position.empty_pages > EMPTY_PAGES_LIMIT {
                return Err(failed(format!(
                    "sent {EMPTY_PAGES_LIMIT} pages of a list without keys"
                )));
            }
            position.token = Some(next);
        }
        Ok((entries, position))
    }
}

fn decoded(key: &str) -> String {
    // Amazon writes a space as a plus and a plus as `%2B`; others leave a plus as it is. No key of a cache
    // has a space.
    percent_decode_str(key).decode_utf8_lossy().into_owned()
}

fn failed(what: String) -> StoreError {
    StoreError::Remote {
        doing: "listing",
        key: "the bucket".to_owned(),
        failure: RemoteFailure::Failed,
        source: format!("the server {what}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ListPage, quick_xml::DeError> {
        quick_xml::de::from_reader(text.as_bytes())
    }

    #[test]
    fn pages_of_several_servers_are_parsed() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>cache</Name>
            <Prefix>x/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys>
            <EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>
            <NextContinuationToken>a+b/c=</NextContinuationToken>
            <Contents><Key>x/a//b</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>
            <ETag>&quot;0123&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
            <Contents><Key>x/log/a%3Fb</Key><LastModified>2026-01-02T03:04:06Z</LastModified>
            <Size>0</Size></Contents><CommonPrefixes/></ListBucketResult>"#;
        let page = parse(text).unwrap();
        assert!(page.is_truncated);
        assert_eq!(page.next_continuation_token.as_deref(), Some("a+b/c="));
        let keys: Vec<_> = page.contents.iter().map(|entry| decoded(&entry.key)).collect();
        assert_eq!(keys, ["x/a//b", "x/log/a?b"]);
        assert_eq!(page.contents[0].etag.as_deref(), Some("\"0123\""));
        assert_eq!(page.contents[1].size, 0);
    }

    #[test]
    fn another_document_is_not_an_empty_list() {
        assert!(parse("<html><body>hello</body></html>").is_err());
        assert!(parse("").is_err());
        let empty = "<ListBucketResult><Name>cache</Name></ListBucketResult>";
        assert!(parse(empty).unwrap().contents.is_empty());
    }
}
