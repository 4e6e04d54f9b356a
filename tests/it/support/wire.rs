//! HTTP by hand, for requests that no client library sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net;

use super::daemon::Daemon;

/// A connection to a daemon.
pub struct Wire {
    stream: TcpStream,
    /// What was read beyond the last head.
    ahead: Vec<u8>,
}

/// An answer's head, and its body where it was read.
#[derive(Debug)]
pub struct Received {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Received {
    /// A header's value, empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Wire {
    pub fn to(daemon: &Daemon) -> Self {
        Self::to_address(daemon.url().trim_start_matches("http://"))
    }

    pub fn to_address(address: &str) -> Self {
        Self::over(TcpStream::connect(address).expect("the daemon accepts connections"))
    }

    /// A connection whose receive buffer has this size, in bytes: what the client does not read stays
    /// with the daemon.
    pub fn with_receive_buffer(daemon: &Daemon, size: usize) -> Self {
        let address: SocketAddr =
            daemon.url().trim_start_matches("http://").parse().expect("an address");
        let socket =
            net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).expect("a socket");
        // Set before the connection exists: the window is negotiated with it.
        net::sockopt::set_socket_recv_buffer_size(&socket, size).expect("a size can be set");
        net::connect(&socket, &address).expect("the daemon accepts connections");
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        // Only a failing test waits so long.
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout can be set");
        Self { stream, ahead: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the daemon reads");
    }

    /// Sends as much as the daemon takes.
    pub fn send_or_give_up(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Whether anything has come by now.
    pub fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).expect("it can be set");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("it can be set");
        peeked.is_ok()
    }

    /// The next answer's head.
    #[track_caller]
    pub fn head(&mut self) -> Received {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.ahead.drain(..end + 4).collect()).expect("ASCII");
                let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
                return Received { status: status.expect("a status line"), head, body: Vec::new() };
            }
            let count = self.read_more();
            let so_far = String::from_utf8_lossy(&self.ahead).into_owned();
            assert!(count > 0, "the connection ended before an answer: “{so_far}”");
        }
    }

    /// The next answer with its body, as long as its `Content-Length` says. Interim answers are
    /// passed over.
    #[track_caller]
    pub fn answer(&mut self) -> Received {
        let mut received = self.head();
        while received.status < 200 {
            received = self.head();
        }
        let length = received.header("content-length").parse().unwrap_or(0);
        while self.ahead.len() < length && self.read_more() > 0 {}
        received.body = self.ahead.drain(..length.min(self.ahead.len())).collect();
        received
    }

    /// Reads at least `count` bytes of a body, and keeps none of them; the number of bytes read.
    #[track_caller]
    pub fn discard(&mut self, count: usize) -> usize {
        let mut total = 0;
        while total < count {
            if self.ahead.is_empty() {
                assert!(self.read_more() > 0, "the body ended after {total} bytes");
            }
            total += self.ahead.len();
            self.ahead.clear();
        }
        total
    }

    /// Everything until the daemon closes the connection.
    pub fn rest(mut self) -> Vec<u8> {
        while self.read_more() > 0 {}
        self.ahead
    }

    /// Waits until so many bytes have come that are not yet taken.
    pub fn wait_for(&mut self, count: usize) {
        while self.ahead.len() < count && self.read_more() > 0 {}
    }

    fn read_more(&mut self) -> usize {
        let mut chunk = vec![0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.ahead.extend_from_slice(&chunk[..count]);
                count
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.read_more(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("the daemon does not answer: {error}"),
        }
    }

    /// One request and its answer.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Received {
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        ));
        self.send_or_give_up(body);
        if method == "HEAD" { self.head() } else { self.answer() }
    }
}
