//! Requests whose answers differ from those that the other benchmarks want.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, ensure};

use crate::client::HEADERS;
use crate::client::transfer::BUFFER;
use crate::nar::Large;

/// The head of an answer, and what came of its body.
struct Answer {
    stream: TcpStream,
    head: String,
    body: Vec<u8>,
}

fn open(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn answer(mut stream: TcpStream) -> anyhow::Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            let head = String::from_utf8(bytes).context("a head in ASCII")?;
            return Ok(Answer { stream, head, body });
        }
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the connection ended before an answer");
        bytes.extend_from_slice(&buffer[..count]);
    }
}

impl Answer {
    fn is(&self, status: &[&str]) -> anyhow::Result<()> {
        let is = self.head.split(' ').nth(1).is_some_and(|it| status.contains(&it));
        ensure!(is, "{} {}", self.head, String::from_utf8_lossy(&self.body));
        Ok(())
    }
}

/// Where a GET is redirected to.
pub fn location(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = open(address)?;
    write!(stream, "GET /{path} HTTP/1.1\r\n{HEADERS}\r\n")?;
    let answer = answer(stream)?;
    answer.is(&["307"])?;
    let mut lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    let location = lines.find(|(name, _)| name.eq_ignore_ascii_case("location"));
    Ok(location.context("a redirect says where to")?.1.to_owned())
}

/// Gets an object by its whole path, from the host of that name.
pub fn get(address: SocketAddr, path: &str, size: u64) -> anyhow::Result<()> {
    let mut stream = open(address)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n")?;
    let mut answer = answer(stream)?;
    answer.is(&["200"])?;
    let mut have = answer.body.len() as u64;
    let mut buffer = vec![0; BUFFER];
    while have < size {
        let count = answer.stream.read(&mut buffer)?;
        ensure!(count > 0, "{have} bytes of {size}");
        have += count as u64;
    }
    Ok(())
}

/// Stores a NAR.
pub fn put(address: SocketAddr, path: &str, nar: &Large) -> anyhow::Result<()> {
    let mut stream = open(address)?;
    let length = nar.length();
    write!(stream, "PUT /{path} HTTP/1.1\r\n{HEADERS}Content-Length: {length}\r\n\r\n")?;
    nar.write_to(&mut stream)?;
    answer(stream)?.is(&["200", "201"])
}
