//! The socket of a connection: TCP or unix.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fd::{AsFd, BorrowedFd};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::sendfile::FileSlice;

/// The socket of a connection.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// With `at_once`, the system call is made even if the socket is not known to be writable.
impl Stream {
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        at_once: bool,
    ) -> Poll<io::Result<usize>> {
        if at_once && let Ok(count) = rustix::io::writev(self.as_fd(), bufs) {
            return Poll::Ready(Ok(count));
        }
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    pub fn poll_send_slice(
        &self,
        cx: &mut Context<'_>,
        slice: &FileSlice,
        at_once: bool,
    ) -> Poll<io::Result<usize>> {
        if at_once && let Ok(count) = slice.send(self.as_fd()) {
            return Poll::Ready(Ok(count));
        }
        loop {
            // Only `EAGAIN` means that the socket is full: a short count can also have other reasons,
            // such as a signal.
            let sent = match self {
                Self::Tcp(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || slice.send(stream.as_fd()))
                }
                Self::Unix(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || slice.send(stream.as_fd()))
                }
            };
            match sent {
                // `try_io` has cleared the readiness, which was out of date.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}
