//! One request for each connection, as of a client that has just started.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

/// No read or write may take longer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The status of an answer, and its body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

pub fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Sends a request, and reads its answer until the daemon closes the connection.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> anyhow::Result<Answer> {
    let mut stream = connect(address)?;
    let length = body.len();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n{headers}\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).context("sending a request")?;
    // The answer may come before the end of the body, and end the connection.
    let sent = stream.write_all(body);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        sent.context("sending a body")?;
        read.context("reading an answer")?;
        anyhow::bail!("{method} /{path}: the connection ended before an answer");
    };
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    let status = status.and_then(|digits| digits.parse().ok()).context("no status line")?;
    answer.drain(..end + 4);
    Ok(Answer { status, body: answer })
}
