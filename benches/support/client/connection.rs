//! A persistent connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::head::Head;
use super::{HEADERS, connect};
use crate::support::cache_dir::Stored;

/// The limit for a read or write.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        connect(address, TIMEOUT).map(Self)
    }

    /// Sends a GET request without waiting for the response.
    pub fn ask(&mut self, path: &str) -> anyhow::Result<()> {
        let request = format!("GET /{path} HTTP/1.1\r\n{HEADERS}\r\n");
        self.0.write_all(request.as_bytes()).context("sending a request")
    }

    /// Downloads an object, through the caller's buffer.
    pub fn get(&mut self, object: &Stored, buffer: &mut [u8]) -> anyhow::Result<()> {
        self.ask(&object.path)?;
        let (head, more) = self.head(buffer)?;
        ensure!(head.status == 200, "{} for {}", head.status, object.path);
        ensure!(head.body == object.size, "{} bytes for {}", head.body, object.path);
        let mut missing = object.size - more as u64;
        while missing > 0 {
            let some = self.read_some(buffer)?;
            missing = missing.checked_sub(some).context("more bytes than were promised")?;
        }
        Ok(())
    }

    /// Sends the head of an upload.
    pub fn begin_put(&mut self, path: &str, length: u64) -> anyhow::Result<()> {
        let head = format!("PUT /{path} HTTP/1.1\r\n{HEADERS}Content-Length: {length}\r\n\r\n");
        self.0.write_all(head.as_bytes()).context("sending the head of an upload")
    }

    /// Sends a part of an upload.
    pub fn send(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(piece).context("sending an upload")
    }

    /// Reads the status of an upload's response.
    pub fn end_put(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let (head, mut have) = self.head(&mut buffer)?;
        while (have as u64) < head.body {
            have += self.read_some(&mut buffer)? as usize;
        }
        let text = String::from_utf8_lossy(&buffer[..]);
        ensure!(head.status == 201, "an upload was answered {}: {text}", head.status);
        Ok(())
    }

    /// Reads at least one byte.
    pub fn read_some(&mut self, buffer: &mut [u8]) -> anyhow::Result<u64> {
        let count = self.0.read(buffer).context("reading an answer")?;
        ensure!(count > 0, "the server closed the connection");
        Ok(count as u64)
    }

    /// Reads the head of a response. Returns it with the number of bytes of the body that arrived
    /// with it.
    fn head(&mut self, buffer: &mut [u8]) -> anyhow::Result<(Head, usize)> {
        let mut filled = 0;
        loop {
            filled += self.read_some(&mut buffer[filled..])? as usize;
            if let Some(head) = Head::parse(&buffer[..filled])? {
                return Ok((head, filled - head.length));
            }
        }
    }
}
