//! Single requests, each over a new connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::connect;

/// The limit for a read or write.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A response, or the part of it that was read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// Sends a request, and reads the response until the server closes the connection.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> anyhow::Result<Answer> {
    let mut stream = connect(address, TIMEOUT)?;
    let length = body.len();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).context("sending a request")?;
    // A response before the end of the body may close the connection.
    let sent = stream.write_all(body);
    let mut answer = match read_head(&mut stream) {
        Ok(answer) => answer,
        Err(error) => {
            sent.context("sending a body")?;
            return Err(error.context(format!("{method} /{path}")));
        }
    };
    let _ = stream.read_to_end(&mut answer.body);
    Ok(answer)
}

/// Reads the head of a response. `body` then has the bytes that arrived with it.
pub fn read_head(stream: &mut TcpStream) -> anyhow::Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            let head = String::from_utf8(bytes).context("a head in ASCII")?;
            let status = head.get(9..12).and_then(|digits| digits.parse().ok());
            return Ok(Answer { status: status.context("no status line")?, head, body });
        }
        let count = stream.read(&mut buffer).context("reading a response")?;
        ensure!(count > 0, "the connection ended before a response");
        bytes.extend_from_slice(&buffer[..count]);
    }
}
