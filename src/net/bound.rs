//! Binds sockets before the process starts threads and drops privileges.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::inherited::Inherited;
use super::unix::{self, SocketFile};
use crate::config::Listen;

/// How many connections may wait to be accepted.
pub(super) const BACKLOG: i32 = 1024;

/// Sockets that clients can connect to. They are accepted when a [`Listener`](super::Listener) is
/// made of these.
#[derive(Debug)]
pub struct Bound(pub(super) Vec<Socket>);

/// One of them.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    /// A unix socket, and its file where it is ours.
    Unix(UnixListener, Option<SocketFile>),
}

impl Bound {
    /// Binds the socket that the configuration names.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address.as_str())?;
                // The library's own number is 128.
                rustix::net::listen(&listener, BACKLOG)?;
                listener.set_nonblocking(true)?;
                Socket::Tcp(listener)
            }
            Listen::Unix { path, mode } => {
                let (listener, file) = unix::bind(path, *mode)?;
                Socket::Unix(listener, Some(file))
            }
        };
        Ok(Self(vec![socket]))
    }
}

/// Sockets that others have bound.
impl From<Vec<Inherited>> for Bound {
    fn from(inherited: Vec<Inherited>) -> Self {
        let sockets = inherited.into_iter().map(|socket| match socket {
            Inherited::Tcp(listener) => Socket::Tcp(listener),
            Inherited::Unix(listener) => Socket::Unix(listener, None),
        });
        Self(sockets.collect())
    }
}
