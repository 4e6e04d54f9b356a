//! The parts of a response's head that the benchmarks need.

use anyhow::{Context, ensure};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The length of the head with the empty line, in bytes.
    pub length: usize,
    pub status: u16,
    /// The length of the body.
    pub body: u64,
}

impl Head {
    /// Parses the head at the beginning of a response. Returns none if it is incomplete.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut body = None;
        let mut begin = 0;
        while let Some(length) = bytes[begin..].iter().position(|&byte| byte == b'\n') {
            let line = &bytes[begin..begin + length];
            begin += length + 1;
            if line.len() <= 1 {
                let status = bytes.get(9..12).and_then(number).context("no status line")? as u16;
                let none = matches!(status, 204 | 304);
                let body = body.or(none.then_some(0));
                let body = body.with_context(|| format!("{status} without a Content-Length"))?;
                return Ok(Some(Self { length: begin, status, body }));
            }
            // Most headers differ in the first byte.
            if line[0] | 0x20 == b'c'
                && line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"))
            {
                body = Some(number(line[15..].trim_ascii()).context("no Content-Length")?);
            }
        }
        ensure!(bytes.len() < 8192, "an answer without an end of its head");
        Ok(None)
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
