//! One HTTP request with a total timeout.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::address::{DaemonAddress, DaemonSocket, Encryption};

/// Maximum size of the response; a `/health` response has some hundred bytes.
const MAX_RESPONSE: u64 = 64 * 1024;

/// Sends the request, and returns the complete response, head and body.
pub(super) fn get_health(address: &DaemonAddress, until: Instant) -> io::Result<String> {
    match &address.socket {
        DaemonSocket::Tcp(host) => {
            let socket = connect(host, until)?;
            request_over(DeadlineSocket { socket, until }, &address.encryption, host)
        }
        DaemonSocket::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            request_over(DeadlineSocket { socket, until }, &address.encryption, "localhost")
        }
    }
}

fn connect(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, time_left(until)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn time_left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn request_over(
    socket: impl Read + Write,
    encryption: &Encryption,
    host: &str,
) -> io::Result<String> {
    match encryption {
        Encryption::None => request(socket, host),
        #[cfg(feature = "tls")]
        encryption => request(super::tls::encrypt(socket, encryption)?, host),
    }
}

fn request(mut stream: impl Read + Write, host: &str) -> io::Result<String> {
    let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

/// A socket whose timeouts can be set.
trait SetTimeouts {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()>;
}

impl SetTimeouts for TcpStream {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

impl SetTimeouts for UnixStream {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

/// A socket with one deadline for all reads and writes together.
struct DeadlineSocket<S> {
    socket: S,
    until: Instant,
}

impl<S: SetTimeouts> DeadlineSocket<S> {
    fn with_deadline<T>(&mut self, act: impl FnOnce(&mut S) -> io::Result<T>) -> io::Result<T> {
        self.socket.set_timeouts(time_left(self.until)?)?;
        act(&mut self.socket).map_err(|error| match error.kind() {
            // The error that a socket timeout causes.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl<S: Read + SetTimeouts> Read for DeadlineSocket<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.with_deadline(|socket| socket.read(bytes))
    }
}

impl<S: Write + SetTimeouts> Write for DeadlineSocket<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with_deadline(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with_deadline(Write::flush)
    }
}
