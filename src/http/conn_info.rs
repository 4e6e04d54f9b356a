//! Where a request comes from.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::ConnectionBudget;

/// The connection of a request, put into its extensions by who accepted it.
#[derive(Clone)]
pub struct ConnInfo {
    /// The other end.
    pub peer: Peer,
    /// How the connection sends files, if it can send them as they are.
    pub files: Option<Arc<dyn LendFile>>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Whether it carries several answers at a time, which their client takes when it likes.
    pub multiplexed: bool,
    /// What its answers may hold.
    pub budget: ConnectionBudget,
    /// Whose client certificate it began with, if it did with one that counts.
    pub certificate: Option<Arc<str>>,
}

/// A connection that can send a file without its bytes passing through the program.
pub trait LendFile: Send + Sync {
    /// The whole file as bytes that are good for nothing but to be sent on this connection, or the
    /// file back. It is `size` bytes long.
    fn lend(&self, file: File, size: u64) -> Result<Bytes, File>;
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP connection from here.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix,
}

impl Peer {
    /// Whether this is the machine itself: then it may be a reverse proxy, and what it says about
    /// its own client is worth logging.
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
