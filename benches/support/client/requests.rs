//! Requests that are prepared before the measurement.

use std::ops::Range;

use super::HEADERS;
use crate::support::cache_dir::Stored;

/// Requests and their expected responses.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
    /// The lengths of the bodies, if they are known.
    lengths: Vec<Option<u64>>,
    /// The status of every response.
    pub status: u16,
}

impl Requests {
    /// GET requests for present objects.
    pub fn get(objects: &[Stored]) -> Self {
        let mut requests = Self { status: 200, ..Self::default() };
        for object in objects {
            requests.push("GET", &object.path, "", &[], Some(object.size));
        }
        requests
    }

    /// GET requests for present objects of any length, because a mirror adds a line to narinfos.
    pub fn get_of_any_length(objects: &[Stored]) -> Self {
        let mut requests = Self { status: 200, ..Self::default() };
        objects.iter().for_each(|object| requests.push("GET", &object.path, "", &[], None));
        requests
    }

    /// GET requests for absent objects.
    pub fn get_absent(paths: impl Iterator<Item = String>) -> Self {
        let mut requests = Self { status: 404, ..Self::default() };
        paths.for_each(|path| requests.push("GET", &path, "", &[], None));
        requests
    }

    /// PUT requests for absent objects.
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

    /// The length of the response's body.
    pub fn length(&self, index: usize) -> Option<u64> {
        self.lengths[index]
    }
}
