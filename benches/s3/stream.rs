//! Requests for large objects, each over a new connection, to servers that may send no
//! Content-Length.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::support::client::exchange::{Answer, read_head};
use crate::support::client::transfer::BUFFER;
use crate::support::client::{HEADERS, connect};
use crate::support::nar::Large;

/// The limit for a read or write. The server syncs a large upload before it answers.
const TIMEOUT: Duration = Duration::from_secs(900);

fn ensure_status(answer: &Answer, expected: &[u16]) -> anyhow::Result<()> {
    let body = String::from_utf8_lossy(&answer.body);
    ensure!(expected.contains(&answer.status), "{} {body}", answer.head);
    Ok(())
}

/// The target of a redirect.
pub fn location(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = connect(address, TIMEOUT)?;
    write!(stream, "GET /{path} HTTP/1.1\r\n{HEADERS}\r\n")?;
    let answer = read_head(&mut stream)?;
    ensure_status(&answer, &[307])?;
    let mut lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    let location = lines.find(|(name, _)| name.eq_ignore_ascii_case("location"));
    Ok(location.context("the redirect has a location")?.1.to_owned())
}

/// Downloads an object by its full path, with this `Host`.
pub fn get(address: SocketAddr, path: &str, size: u64) -> anyhow::Result<()> {
    let mut stream = connect(address, TIMEOUT)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n")?;
    let answer = read_head(&mut stream)?;
    ensure_status(&answer, &[200])?;
    let mut have = answer.body.len() as u64;
    let mut buffer = vec![0; BUFFER];
    while have < size {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "{have} bytes of {size}");
        have += count as u64;
    }
    Ok(())
}

/// Uploads a NAR.
pub fn put(address: SocketAddr, path: &str, nar: &Large) -> anyhow::Result<()> {
    let mut stream = connect(address, TIMEOUT)?;
    let length = nar.length();
    write!(stream, "PUT /{path} HTTP/1.1\r\n{HEADERS}Content-Length: {length}\r\n\r\n")?;
    nar.write_to(&mut stream)?;
    ensure_status(&read_head(&mut stream)?, &[200, 201])
}
