//! A bucket without the daemon: requests signed by hand (AWS Signature Version 4).

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::wire::{Received, Wire};

/// Who somebody is to a server.
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

/// What stays as it is in a URL that is signed.
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

    /// Where its server is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same bucket for another user.
    pub fn as_user(&self, keys: Keys) -> Self {
        Self { keys: Some(keys), ..self.clone() }
    }

    /// The same bucket by another way, such as a proxy.
    pub fn through(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// The URL that `NIX_STORED_PATH`, and Nix, take.
    pub fn url(&self) -> String {
        self.url_below("")
    }

    /// The same with a prefix.
    pub fn url_below(&self, prefix: &str) -> String {
        let Self { address, name, region, .. } = self;
        let slash = if prefix.is_empty() { "" } else { "/" };
        format!("s3://{name}{slash}{prefix}?endpoint=http://{address}&region={region}")
    }

    /// What the daemon's environment says of its keys, and that there are no others.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let nowhere = [
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/nonexistent"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ];
        let nowhere = nowhere.map(|(name, value)| (name, value.to_owned()));
        let keys = self.keys.map(|Keys { id, secret }| {
            [("AWS_ACCESS_KEY_ID", id.to_owned()), ("AWS_SECRET_ACCESS_KEY", secret.to_owned())]
        });
        nowhere.into_iter().chain(keys.into_iter().flatten()).collect()
    }

    /// All of what a daemon over it is told.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        [("NIX_STORED_PATH", self.url())].into_iter().chain(self.env()).collect()
    }

    /// One signed request.
    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Received {
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
            write!(lines, "{name}: {value}\r\n").expect("a string takes everything");
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
            .expect("a string takes everything");
        }
        let question = if query.is_empty() { "" } else { "?" };
        let mut wire = Wire::to_address(&host);
        wire.send(&format!("{method} {path}{question}{query} HTTP/1.1\r\n{lines}\r\n"));
        wire.send_or_give_up(body);
        if method == "HEAD" { wire.head() } else { wire.answer() }
    }

    /// Stores an object.
    #[track_caller]
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let answer = self.request("PUT", key, &[], &[], bytes);
        assert_eq!(answer.status, 200, "{key}: {} {}", answer.head, answer.text());
    }

    /// An object's bytes.
    #[track_caller]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let answer = self.request("GET", key, &[], &[], b"");
        match answer.status {
            200 => Some(answer.body),
            404 => None,
            _ => panic!("{key}: {} {}", answer.head, answer.text()),
        }
    }

    /// What the server says of an object.
    #[track_caller]
    pub fn head(&self, key: &str) -> Received {
        self.request("HEAD", key, &[], &[], b"")
    }

    #[track_caller]
    pub fn delete(&self, key: &str) {
        let answer = self.request("DELETE", key, &[], &[], b"");
        assert!(matches!(answer.status, 200 | 204), "{key}: {} {}", answer.head, answer.text());
    }

    /// The keys of all objects.
    #[track_caller]
    pub fn all_keys(&self) -> Vec<String> {
        let (mut keys, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut query = vec![("list-type", "2")];
            query.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let answer = self.request("GET", "", &query, &[], b"");
            let text = answer.text();
            assert_eq!(answer.status, 200, "{} {text}", answer.head);
            keys.extend(elements(&text, "Key"));
            token = elements(&text, "NextContinuationToken").pop();
            if token.is_none() {
                keys.sort();
                return keys;
            }
        }
    }

    /// The keys of all objects that are not the daemon's own.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let mut keys = self.all_keys();
        keys.retain(|key| !key.starts_with(".nix-stored/"));
        keys
    }

    /// The keys of uploads in parts that did not come to their end.
    #[track_caller]
    pub fn unfinished(&self) -> Vec<String> {
        let answer = self.request("GET", "", &[("uploads", "")], &[], b"");
        assert_eq!(answer.status, 200, "{} {}", answer.head, answer.text());
        elements(&answer.text(), "Key")
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("every length is one of a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The texts of all elements of this name.
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
