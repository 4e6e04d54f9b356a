//! Raw HTTP/1.1, for requests that no client library sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net;

use super::daemon::Daemon;

/// A connection to a daemon.
pub struct Wire {
    stream: TcpStream,
    /// Bytes that were read after the last head.
    ahead: Vec<u8>,
}

/// The head of a response, and the body if it was read.
#[derive(Debug)]
pub struct RawResponse {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl RawResponse {
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

    /// A connection whose receive buffer has this size, in bytes. What the client does not read
    /// stays in the daemon's buffers.
    pub fn with_receive_buffer(daemon: &Daemon, size: usize) -> Self {
        let address: SocketAddr =
            daemon.url().trim_start_matches("http://").parse().expect("an address");
        let socket =
            net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).expect("a socket");
        // Set before connecting, because the window is negotiated during the handshake.
        net::sockopt::set_socket_recv_buffer_size(&socket, size).expect("the buffer size is set");
        net::connect(&socket, &address).expect("the daemon accepts connections");
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        // Only failing tests wait this long.
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("the timeout is set");
        Self { stream, ahead: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the daemon reads");
    }

    /// Sends as much as the daemon accepts.
    pub fn send_or_give_up(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Whether any bytes of a response have arrived.
    pub fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).expect("the option is set");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("the option is set");
        peeked.is_ok()
    }

    /// Reads the head of the next response.
    #[track_caller]
    pub fn head(&mut self) -> RawResponse {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(self.ahead.drain(..end + 4).collect()).expect("ASCII");
                let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
                return RawResponse {
                    status: status.expect("a status line"),
                    head,
                    body: Vec::new(),
                };
            }
            let count = self.read_more();
            let so_far = String::from_utf8_lossy(&self.ahead).into_owned();
            assert!(count > 0, "the connection ended before an answer: “{so_far}”");
        }
    }

    /// Reads the next response with its body, according to its `Content-Length`. Interim responses
    /// are skipped.
    #[track_caller]
    pub fn response(&mut self) -> RawResponse {
        let mut received = self.head();
        while received.status < 200 {
            received = self.head();
        }
        let length = received.header("content-length").parse().unwrap_or(0);
        while self.ahead.len() < length && self.read_more() > 0 {}
        received.body = self.ahead.drain(..length.min(self.ahead.len())).collect();
        received
    }

    /// Reads and discards at least `count` bytes of a body. Returns the number of bytes read.
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

    /// Reads until the daemon closes the connection.
    pub fn rest(mut self) -> Vec<u8> {
        while self.read_more() > 0 {}
        self.ahead
    }

    /// Waits until at least `count` unread bytes have arrived.
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

    /// Sends a request and reads its response.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> RawResponse {
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        ));
        self.send_or_give_up(body);
        if method == "HEAD" { self.head() } else { self.response() }
    }
}
