//! Requests, written out before the clock runs.

use std::ops::Range;

use super::HEADERS;
use crate::support::cache_dir::Stored;

/// Requests and what they are answered with.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
    /// The lengths of the bodies, where they are known.
    lengths: Vec<Option<u64>>,
    /// The status of every answer.
    pub status: u16,
}

impl Requests {
    /// GETs of what is there.
    pub fn get(objects: &[Stored]) -> Self {
        let mut requests = Self { status: 200, ..Self::default() };
        for object in objects {
            requests.push("GET", &object.path, "", &[], Some(object.size));
        }
        requests
    }

    /// GETs of what is there, of whatever length: a mirror adds a line to a narinfo.
    pub fn get_of_any_length(objects: &[Stored]) -> Self {
        let mut requests = Self { status: 200, ..Self::default() };
        objects.iter().for_each(|object| requests.push("GET", &object.path, "", &[], None));
        requests
    }

    /// GETs of what is not there.
    pub fn get_absent(paths: impl Iterator<Item = String>) -> Self {
        let mut requests = Self { status: 404, ..Self::default() };
        paths.for_each(|path| requests.push("GET", &path, "", &[], None));
        requests
    }

    /// PUTs of what is not there yet.
    pub fn put(objects: impl Iterator<Item = (String, Vec<u8>)>) -> Self {
        let mut requests = Self { status: 201, ..Self::default() };
        for (path, body) in objects {
            let length = format!("Content-Length: {}\r\n", body.len());
            requests.push("PUT", &path, &length, &body, None);
        }
        requests
    }

    fn push(&mut self, method: &str, path: &str, more: &str, body: &[u8], length: Option<u64>) {
        let begin = self.bytes.len();
        let head = format!("{method} /{path} HTTP/1.1\r\n{HEADERS}{more}\r\n");
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(body);
        self.ranges.push(begin..self.bytes.len());
        self.lengths.push(length);
    }

    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.bytes[self.ranges[index].clone()]
    }

    /// The length of the body that answers this one.
    pub fn length(&self, index: usize) -> Option<u64> {
        self.lengths[index]
    }
}
