//! Binds sockets before the process starts threads and drops privileges.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::inherited::Inherited;
use super::unix::{self, SocketFile};
use crate::config::Listen;

/// The number of connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Bound sockets. A [`Listener`](super::Listener) accepts their connections.
#[derive(Debug)]
pub struct Bound(pub(super) Vec<BoundSocket>);

/// A bound socket.
#[derive(Debug)]
pub(super) enum BoundSocket {
    Tcp(TcpListener),
    /// A unix socket, and its file if this process created it.
    Unix(UnixListener, Option<SocketFile>),
}

impl Bound {
    /// Binds the socket that the configuration names.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address.as_str())?;
                // The standard library sets 128.
                rustix::net::listen(&listener, BACKLOG)?;
                listener.set_nonblocking(true)?;
                BoundSocket::Tcp(listener)
            }
            Listen::Unix { path, mode } => {
                let (listener, file) = unix::bind(path, *mode, BACKLOG)?;
                BoundSocket::Unix(listener, Some(file))
            }
        };
        Ok(Self(vec![socket]))
    }
}

/// Sockets that another process has bound.
impl From<Vec<Inherited>> for Bound {
    fn from(inherited: Vec<Inherited>) -> Self {
        let sockets = inherited.into_iter().map(|socket| match socket {
            Inherited::Tcp(listener) => BoundSocket::Tcp(listener),
            Inherited::Unix(listener) => BoundSocket::Unix(listener, None),
        });
        Self(sockets.collect())
    }
}
