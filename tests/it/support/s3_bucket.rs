//! A bucket without the daemon: requests signed by hand (AWS Signature Version 4).

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::wire::{RawResponse, Wire};

/// An access key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    pub id: &'static str,
    pub secret: &'static str,
}

/// A bucket of a server on this machine.
#[derive(Debug, Clone)]
pub struct Bucket {
    address: SocketAddr,
    name: String,
    region: String,
    keys: Option<Keys>,
}

/// The characters that are not percent-encoded in a signed URL.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

impl Bucket {
    pub fn new(address: SocketAddr, name: &str, region: &str, keys: Option<Keys>) -> Self {
        Self { address, name: name.to_owned(), region: region.to_owned(), keys }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same bucket for another user.
    pub fn as_user(&self, keys: Keys) -> Self {
        Self { keys: Some(keys), ..self.clone() }
    }

    /// The same bucket at another address, such as that of a proxy.
    pub fn through(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// The URL for `NIX_STORED_PATH` and for Nix.
    pub fn url(&self) -> String {
        self.url_below("")
    }

    /// The URL with a prefix.
    pub fn url_below(&self, prefix: &str) -> String {
        let Self { address, name, region, .. } = self;
        let slash = if prefix.is_empty() { "" } else { "/" };
        format!("s3://{name}{slash}{prefix}?endpoint=http://{address}&region={region}")
    }

    /// The variables that give a daemon the keys of this bucket, and no others.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let no_other_keys = [
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/nonexistent"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ];
        let no_other_keys = no_other_keys.map(|(name, value)| (name, value.to_owned()));
        let keys = self.keys.map(|Keys { id, secret }| {
            [("AWS_ACCESS_KEY_ID", id.to_owned()), ("AWS_SECRET_ACCESS_KEY", secret.to_owned())]
        });
        no_other_keys.into_iter().chain(keys.into_iter().flatten()).collect()
    }

    /// The variables of a daemon with its cache in this bucket.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        [("NIX_STORED_PATH", self.url())].into_iter().chain(self.env()).collect()
    }

    /// Sends a signed request.
    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> RawResponse {
        let parts: Vec<String> = key.split('/').map(encoded).collect();
        let path = format!("/{}/{}", self.name, parts.join("/"));
        let mut query: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
            .collect();
        query.sort();
        let query = query.join("&");
        let host = self.address.to_string();
        let digest = HEXLOWER.encode(&Sha256::digest(body));
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let time = time.replace(['-', ':'], "");
        let mut lines = format!("Host: {host}\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            write!(lines, "{name}: {value}\r\n").expect("writing to a string succeeds");
        }
        if let Some(keys) = self.keys {
            let signed = "host;x-amz-content-sha256;x-amz-date";
            let request = format!(
                "{method}\n{path}\n{query}\nhost:{host}\nx-amz-content-sha256:{digest}\n\
                 x-amz-date:{time}\n\n{signed}\n{digest}"
            );
            let scope = format!("{}/{}/s3/aws4_request", &time[..8], self.region);
            let request = HEXLOWER.encode(&Sha256::digest(request));
            let key = scope
                .split('/')
                .fold(format!("AWS4{}", keys.secret).into_bytes(), |key, part| mac(&key, part));
            let signature = mac(&key, &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{request}"));
            write!(
                lines,
                "x-amz-content-sha256: {digest}\r\nx-amz-date: {time}\r\n\
                 Authorization: AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, \
                 Signature={}\r\n",
                keys.id,
                HEXLOWER.encode(&signature)
            )
            .expect("writing to a string succeeds");
        }
        let question = if query.is_empty() { "" } else { "?" };
        let mut wire = Wire::to_address(&host);
        wire.send(&format!("{method} {path}{question}{query} HTTP/1.1\r\n{lines}\r\n"));
        wire.send_or_give_up(body);
        if method == "HEAD" { wire.head() } else { wire.response() }
    }

    /// Stores an object.
    #[track_caller]
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let response = self.request("PUT", key, &[], &[], bytes);
        assert_eq!(response.status, 200, "{key}: {} {}", response.head, response.text());
    }

    /// An object's bytes.
    #[track_caller]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let response = self.request("GET", key, &[], &[], b"");
        match response.status {
            200 => Some(response.body),
            404 => None,
            _ => panic!("{key}: {} {}", response.head, response.text()),
        }
    }

    /// Sends a HEAD request for an object.
    #[track_caller]
    pub fn head(&self, key: &str) -> RawResponse {
        self.request("HEAD", key, &[], &[], b"")
    }

    #[track_caller]
    pub fn delete(&self, key: &str) {
        let response = self.request("DELETE", key, &[], &[], b"");
        assert!(
            matches!(response.status, 200 | 204),
            "{key}: {} {}",
            response.head,
            response.text()
        );
    }

    /// The keys of all objects.
    #[track_caller]
    pub fn all_keys(&self) -> Vec<String> {
        let (mut keys, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut query = vec![("list-type", "2")];
            query.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let response = self.request("GET", "", &query, &[], b"");
            let text = response.text();
            assert_eq!(response.status, 200, "{} {text}", response.head);
            keys.extend(elements(&text, "Key"));
            token = elements(&text, "NextContinuationToken").pop();
            if token.is_none() {
                keys.sort();
                return keys;
            }
        }
    }

    /// The keys of all objects except the daemon's own.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let mut keys = self.all_keys();
        keys.retain(|key| !key.starts_with(".nix-stored/"));
        keys
    }

    /// The keys of unfinished multipart uploads.
    #[track_caller]
    pub fn unfinished(&self) -> Vec<String> {
        let response = self.request("GET", "", &[("uploads", "")], &[], b"");
        assert_eq!(response.status, 200, "{} {}", response.head, response.text());
        elements(&response.text(), "Key")
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The texts of all elements with this name.
fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let texts = xml.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
    let plain = |text: &str| {
        let marks = [
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "\""),
            ("&apos;", "'"),
            ("&#39;", "'"),
            ("&amp;", "&"),
        ];
        marks.iter().fold(text.to_owned(), |text, (mark, plain)| text.replace(mark, plain))
    };
    texts.map(plain).collect()
}
