//! The listening sockets.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::net::{TcpListener, UnixListener};

use super::bound::{Bound, BoundSocket};
use super::stream::Stream;
#[cfg(feature = "tls")]
use super::tls::TlsAcceptorHandle;
use super::unix::SocketFile;
use crate::config::Listen;
use crate::http::Peer;

/// The listening sockets.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<Socket>,
    /// The index of the socket that is polled first, so that a busy socket does not starve the others.
    first: usize,
    #[cfg(feature = "tls")]
    tls: Option<TlsAcceptorHandle>,
}

/// A bound socket.
#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// A unix socket, and its file if this process created it.
    Unix(UnixListener, Option<SocketFile>),
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    pub stream: Stream,
    pub peer: Peer,
    /// The TLS settings, if connections are encrypted.
    #[cfg(feature = "tls")]
    pub tls: Option<TlsAcceptorHandle>,
}

impl Listener {
    /// Binds the socket that the configuration names.
    pub async fn bind(listen: &Listen) -> io::Result<Self> {
        Self::on(Bound::bind(listen)?)
    }

    /// Accepts connections on bound sockets. Must be called within a runtime.
    pub fn on(bound: Bound) -> io::Result<Self> {
        let sockets = bound.0.into_iter().map(|socket| match socket {
            BoundSocket::Tcp(listener) => Ok(Socket::Tcp(TcpListener::from_std(listener)?)),
            BoundSocket::Unix(listener, file) => {
                Ok(Socket::Unix(UnixListener::from_std(listener)?, file))
            }
        });
        Ok(Self {
            sockets: sockets.collect::<io::Result<_>>()?,
            first: 0,
            #[cfg(feature = "tls")]
            tls: None,
        })
    }

    /// Encrypts every connection.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn encrypted(self, tls: Option<TlsAcceptorHandle>) -> Self {
        Self { tls, ..self }
    }

    /// Whether all sockets can be reached only from this machine.
    pub fn is_local(&self) -> bool {
        self.sockets.iter().all(Socket::is_local)
    }

    /// The addresses of the sockets; URLs for TCP, `unix:PATH` for unix sockets.
    pub fn urls(&self) -> Vec<String> {
        #[cfg(feature = "tls")]
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        #[cfg(not(feature = "tls"))]
        let scheme = "http";
        self.sockets.iter().map(|socket| socket.url(scheme)).collect()
    }

    /// Accepts the next connection.
    pub async fn accept(&mut self) -> io::Result<Connection> {
        let (stream, peer) = poll_fn(|cx| self.poll_accept(cx)).await?;
        Ok(Connection {
            stream,
            peer,
            #[cfg(feature = "tls")]
            tls: self.tls.clone(),
        })
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        let count = self.sockets.len();
        for index in (self.first..count).chain(0..self.first) {
            if let Poll::Ready(accepted) = self.sockets[index].poll_accept(cx) {
                self.first = (index + 1) % count;
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

impl Socket {
    fn is_local(&self) -> bool {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| address.ip().is_loopback())
            }
            Self::Unix(..) => true,
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = ready!(listener.poll_accept(cx))?;
                // Responses are written in full, so Nagle's algorithm would only delay them. A client
                // is served even if this fails.
                let _ = stream.set_nodelay(true);
                Poll::Ready(Ok((Stream::Tcp(stream), Peer::Tcp(address))))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = ready!(listener.poll_accept(cx))?;
                Poll::Ready(Ok((Stream::Unix(stream), Peer::Unix)))
            }
        }
    }

    fn url(&self, scheme: &str) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("{scheme}://{address}"),
                Err(_) => "an unknown address".to_owned(),
            },
            Self::Unix(_, Some(file)) => format!("unix:{}", file.path().display()),
            Self::Unix(listener, None) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => format!("unix:{}", path.display()),
                    None => "a unix socket without a name".to_owned(),
                }
            }
        }
    }
}

/// The addresses.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.urls().join(" and "))
    }
}
