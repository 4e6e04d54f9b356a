//! One HTTP request with a total timeout.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::place::{Encryption, Place, Socket};

/// Maximum size of the response; a `/health` response has some hundred bytes.
const LIMIT: u64 = 64 * 1024;

/// Sends the request, and returns the complete response, head and body.
pub(super) fn ask(place: &Place, until: Instant) -> io::Result<String> {
    match &place.socket {
        Socket::Tcp(address) => {
            let socket = connect(address, until)?;
            over(Patient { socket, until }, &place.encryption, address)
        }
        Socket::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            over(Patient { socket, until }, &place.encryption, "localhost")
        }
    }
}

fn connect(address: &str, until: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn over(socket: impl Read + Write, encryption: &Encryption, host: &str) -> io::Result<String> {
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
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A socket whose timeouts can be set.
trait Timeouts {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()>;
}

impl Timeouts for TcpStream {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

impl Timeouts for UnixStream {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout))?;
        self.set_write_timeout(Some(timeout))
    }
}

/// A socket with one deadline for all reads and writes together.
struct Patient<S> {
    socket: S,
    until: Instant,
}

impl<S: Timeouts> Patient<S> {
    fn in_time<T>(&mut self, act: impl FnOnce(&mut S) -> io::Result<T>) -> io::Result<T> {
        self.socket.set_timeouts(left(self.until)?)?;
        act(&mut self.socket).map_err(|error| match error.kind() {
            // The error that a socket timeout causes.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl<S: Read + Timeouts> Read for Patient<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.in_time(|socket| socket.read(bytes))
    }
}

impl<S: Write + Timeouts> Write for Patient<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.in_time(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.in_time(Write::flush)
    }
}
