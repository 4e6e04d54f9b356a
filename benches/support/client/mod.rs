//! The load: a client that costs little, and still checks the responses.

pub mod connection;
pub mod exchange;
pub mod head;
pub mod requests;
pub mod storm;
pub mod transfer;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

/// The headers of Nix 2.14 to 2.33, which are a part of the server's work.
pub const HEADERS: &str = "Host: 127.0.0.1\r\n\
    User-Agent: curl/8.14.1 Nix/2.26.3\r\n\
    Accept: */*\r\n\
    Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n";

/// Connects. No read or write may take longer than `timeout`.
pub fn connect(address: SocketAddr, timeout: Duration) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}
