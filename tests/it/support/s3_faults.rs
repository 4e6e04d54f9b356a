//! A proxy between the daemon and its S3 server that injects faults.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the proxy does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Passes it to the server.
    Pass,
    /// Answers it with this status and this S3 error code.
    Error(u16, &'static str),
    /// Answers it like another server: with a status line, a header and a body.
    Page(&'static str, &'static str, &'static str),
    /// Never answers it.
    Hang,
    /// Passes it to the server, and closes the connection after this many bytes of the response's
    /// body.
    Cut(u64),
    /// Pauses for this time after this many bytes of the response's body.
    Stall(u64, Duration),
    /// Limits the bodies in both directions to this many bytes per second.
    Slow(u64),
    /// Passes it to the server after this time.
    Delay(Duration),
    /// Closes the connection at once.
    Refuse,
}

/// The number of pieces in which a slow connection transfers the bytes of one second.
const SLOW_PIECES: u32 = 20;

type Rule = Box<dyn FnMut(&str) -> Action + Send>;

/// A proxy that passes everything until a rule is set. Dropping it stops it
/// and closes its connections.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    rule: Mutex<Rule>,
    heads: Mutex<Vec<String>>,
    connections: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("the lock is not poisoned")
}

impl FaultProxy {
    /// A proxy in front of a server.
    pub fn in_front_of(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            server,
            rule: Mutex::new(Box::new(|_| Action::Pass)),
            heads: Mutex::default(),
            connections: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, &listener)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the rule, which chooses the action for a request by its head.
    pub fn on(&self, rule: impl FnMut(&str) -> Action + Send + 'static) {
        *lock(&self.shared.rule) = Box::new(rule);
    }

    /// Sets the same action for every request.
    pub fn all(&self, action: Action) {
        self.on(move |_| action);
    }

    /// Sets the action for the next `count` requests; later ones pass.
    pub fn next(&self, mut count: usize, action: Action) {
        self.on(move |_| match count {
            0 => Action::Pass,
            _ => {
                count -= 1;
                action
            }
        });
    }

    /// The request lines so far.
    pub fn requests(&self) -> Vec<String> {
        let heads = lock(&self.shared.heads);
        heads.iter().filter_map(|head| head.lines().next()).map(str::to_owned).collect()
    }

    /// Clears the recorded requests.
    pub fn clear_requests(&self) {
        lock(&self.shared.heads).clear();
    }

    /// Closes all connections, also those that hang.
    pub fn disconnect(&self) {
        for connection in lock(&self.shared.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.disconnect();
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let (client, _) = listener.accept().expect("the listener accepts");
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // Errors of closed connections are ignored.
            let _ = pass_on(&shared, &client);
            let _ = client.shutdown(Shutdown::Both);
        });
    }
}

fn pass_on(shared: &Shared, client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    lock(&shared.connections).push(client.try_clone()?);
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut to_client = client;
    let mut server: Option<BufReader<TcpStream>> = None;
    while let Some(head) = read_head(&mut from_client)? {
        lock(&shared.heads).push(head.clone());
        let action = (lock(&shared.rule))(&head);
        let length = content_length(&head).unwrap_or(0);
        match action {
            Action::Refuse => return Ok(()),
            Action::Hang => {
                io::copy(&mut from_client, &mut io::sink())?;
                return Ok(());
            }
            Action::Error(status, code) => {
                if expects(&head) {
                    to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                io::copy(&mut (&mut from_client).take(length), &mut io::sink())?;
                response(to_client, status, code, head.starts_with("HEAD "))?;
                continue;
            }
            Action::Page(status, header, body) => {
                if expects(&head) {
                    to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                io::copy(&mut (&mut from_client).take(length), &mut io::sink())?;
                let length = body.len();
                let body = if head.starts_with("HEAD ") { "" } else { body };
                let response = format!(
                    "HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                to_client.write_all(response.as_bytes())?;
                continue;
            }
            Action::Delay(time) => std::thread::sleep(time),
            Action::Pass | Action::Cut(_) | Action::Stall(..) | Action::Slow(_) => {}
        }
        let server = match &mut server {
            Some(server) => server,
            none => {
                let stream = TcpStream::connect(shared.server)?;
                stream.set_nodelay(true)?;
                lock(&shared.connections).push(stream.try_clone()?);
                none.insert(BufReader::new(stream))
            }
        };
        server.get_ref().write_all(head.as_bytes())?;
        pass_body(&mut (&mut from_client).take(length), server.get_ref(), action)?;
        if !pass_back(server, to_client, head.starts_with("HEAD "), action)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Passes a response back. Returns false if the connection cannot be reused.
fn pass_back(
    server: &mut BufReader<TcpStream>,
    mut client: &TcpStream,
    is_head: bool,
    action: Action,
) -> io::Result<bool> {
    let at_most = if let Action::Cut(bytes) = action { Some(bytes) } else { None };
    loop {
        let Some(head) = read_head(server)? else {
            return Ok(false);
        };
        client.write_all(head.as_bytes())?;
        let status = head.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        if status < 200 {
            continue;
        }
        if is_head || status == 204 || status == 304 {
            return Ok(true);
        }
        let length = content_length(&head);
        let rest = length.unwrap_or(u64::MAX).min(at_most.unwrap_or(u64::MAX));
        match length {
            None if header(&head, "transfer-encoding").is_some() && at_most.is_none() => {
                pass_chunks(server, client)?;
                return Ok(true);
            }
            _ => {
                let mut body = server.take(rest);
                if let Action::Stall(bytes, time) = action {
                    io::copy(&mut (&mut body).take(bytes), &mut client)?;
                    std::thread::sleep(time);
                }
                pass_body(&mut body, client, action)?;
                return Ok(at_most.is_none() && length.is_some());
            }
        }
    }
}

/// Passes a body on, at the speed of the action.
fn pass_body(body: &mut impl Read, mut to: &TcpStream, action: Action) -> io::Result<()> {
    let Action::Slow(bytes_per_second) = action else {
        return io::copy(body, &mut to).map(drop);
    };
    let pieces = u64::from(SLOW_PIECES);
    loop {
        let piece = (bytes_per_second / pieces).max(1);
        if io::copy(&mut body.by_ref().take(piece), &mut to)? < piece {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1) / SLOW_PIECES);
    }
}

fn pass_chunks(server: &mut BufReader<TcpStream>, mut client: &TcpStream) -> io::Result<()> {
    loop {
        let mut line = String::new();
        server.read_line(&mut line)?;
        client.write_all(line.as_bytes())?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
        // Each chunk ends with an empty line, and so do the trailers.
        io::copy(&mut server.take(size + 2), &mut client)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn response(mut client: &TcpStream, status: u16, code: &str, is_head: bool) -> io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
         <Message>as the test wants it</Message></Error>"
    );
    let head = format!(
        "HTTP/1.1 {status} So\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes())?;
    if is_head { Ok(()) } else { client.write_all(body.as_bytes()) }
}

fn read_head(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if from.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[before..].trim_end().is_empty() {
            return Ok(Some(head));
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn content_length(head: &str) -> Option<u64> {
    header(head, "content-length").and_then(|length| length.parse().ok())
}

fn expects(head: &str) -> bool {
    header(head, "expect").is_some()
}
