//! Sockets passed by systemd's socket activation (sd_listen_fds(3)). They stay open while the
//! daemon restarts.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use rustix::fd::AsFd;
use rustix::net::sockopt::socket_acceptconn;

/// A socket that was passed to this process.
#[derive(Debug)]
pub enum Inherited {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket, whose file this process does not remove.
    Unix(UnixListener),
}

impl Inherited {
    /// Takes all sockets that were passed, in order. Must be called before threads start, because it
    /// removes environment variables.
    pub fn take() -> io::Result<Vec<Self>> {
        let mut passed = ListenFd::from_env();
        (0..passed.len()).map(|index| Self::take_one(&mut passed, index)).collect()
    }

    fn take_one(passed: &mut ListenFd, index: usize) -> io::Result<Self> {
        if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
            check_listening(&listener, index)?;
            listener.set_nonblocking(true)?;
            return Ok(Self::Tcp(listener));
        }
        if let Ok(Some(listener)) = passed.take_unix_listener(index) {
            check_listening(&listener, index)?;
            listener.set_nonblocking(true)?;
            return Ok(Self::Unix(listener));
        }
        Err(unusable(index))
    }
}

fn check_listening(socket: impl AsFd, index: usize) -> io::Result<()> {
    if socket_acceptconn(socket)? { Ok(()) } else { Err(unusable(index)) }
}

fn unusable(index: usize) -> io::Error {
    let why = format!(
        "inherited socket {} is not a listening socket; use ListenStream= in the socket unit",
        index + 1
    );
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
