//! The connection of a request.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::ConnectionBudget;

/// The connection of a request. `net` puts it into the extensions of the request.
#[derive(Clone)]
pub struct ConnInfo {
    /// The client, or a proxy.
    pub peer: Peer,
    /// Maps files so that the connection sends them with `sendfile`, if it supports that.
    pub files: Option<Arc<dyn MapFile>>,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Whether several responses can be in progress at a time, as in HTTP/2. The client decides how
    /// much of each it accepts.
    pub multiplexed: bool,
    /// The memory and files that its responses may hold.
    pub budget: ConnectionBudget,
    /// The name in the client's verified certificate, if it sent one.
    pub certificate: Option<Arc<str>>,
}

/// A connection that can send files without copying them through user space.
pub trait MapFile: Send + Sync {
    /// Returns the whole file, of `size` bytes, as bytes that must only be sent on this connection, and
    /// never read. Returns the file itself if it cannot be mapped.
    fn map(&self, file: File, size: u64) -> Result<Bytes, File>;
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The address of a TCP client.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix,
}

impl Peer {
    /// Whether the client is on this machine. It may be a reverse proxy, so its `X-Forwarded-For`
    /// is logged.
    pub fn is_local(self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix => true,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}
