//! A scripted upstream in this process, with a script for each path and a thread for each
//! connection.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::objects::Sample;

/// Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A function that answers a request.
type Script = Arc<dyn Fn(&mut Exchange) + Send + Sync>;

/// An upstream. Stopped on drop, with all its connections.
pub struct ScriptedUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<HashMap<String, Script>>,
    requests: Mutex<Vec<RecordedRequest>>,
    came: Condvar,
    connections: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

/// A received request.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// The request target. For a proxy it is a complete URL.
    pub target: String,
    pub head: String,
    /// The address of the client.
    pub peer: IpAddr,
}

impl RecordedRequest {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether it is a HEAD request.
    pub fn is_head(&self) -> bool {
        self.head.starts_with("HEAD ")
    }

    /// The first requested byte.
    pub fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("the lock is not poisoned")
}

impl ScriptedUpstream {
    /// An upstream without objects.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// An upstream with these samples.
    pub fn with(samples: &[&Sample]) -> Self {
        let upstream = Self::start();
        for sample in samples {
            upstream.has(&sample.narinfo_path, sample.narinfo.as_bytes());
            upstream.has(&sample.nar_path, &sample.nar);
        }
        upstream
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL with a response timeout of one second.
    pub fn impatient(&self) -> String {
        format!("{}?timeout=1s", self.url())
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the script for a path.
    pub fn on(&self, path: &str, script: impl Fn(&mut Exchange) + Send + Sync + 'static) {
        lock(&self.shared.scripts).insert(path.to_owned(), Arc::new(script));
    }

    /// Sets the script for all paths without one.
    pub fn otherwise(&self, script: impl Fn(&mut Exchange) + Send + Sync + 'static) {
        self.on("", script);
    }

    /// Serves these bytes at `path`, with support for ranges.
    pub fn has(&self, path: &str, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.on(path, move |exchange| exchange.send(&bytes));
    }

    /// Answers all requests with this status.
    pub fn answer_all_with(&self, status: u16) {
        self.otherwise(move |exchange| exchange.status(status, ""));
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.shared.requests).clone()
    }

    /// The number of requests for this path.
    pub fn count(&self, path: &str) -> usize {
        lock(&self.shared.requests).iter().filter(|request| request.target == path).count()
    }

    /// Waits for this number of requests for a path.
    #[track_caller]
    pub fn wait_for(&self, path: &str, count: usize) {
        let few = |requests: &mut Vec<RecordedRequest>| {
            requests.iter().filter(|request| request.target == path).count() < count
        };
        let requests = lock(&self.shared.requests);
        let waited = self.shared.came.wait_timeout_while(requests, TIMEOUT, few);
        let late = waited.expect("the lock is not poisoned").1.timed_out();
        assert!(!late, "there were never {count} requests for {path}: {:?}", self.requests());
    }

    /// Stops the upstream: connections break, and new ones are refused.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        let _ = acceptor.join();
        for connection in lock(&self.shared.connections).drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for ScriptedUpstream {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let (stream, peer) = listener.accept().expect("the listener accepts");
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            lock(&self.connections).push(stream.try_clone().expect("open"));
            let shared = Arc::clone(&self);
            std::thread::spawn(move || shared.serve(stream, peer.ip()));
        }
    }

    fn serve(&self, stream: TcpStream, peer: IpAddr) {
        let mut reader = BufReader::new(stream.try_clone().expect("open"));
        let mut before = 0;
        while let Some(head) = read_head(&mut reader) {
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let request = RecordedRequest { target, head, peer };
            lock(&self.requests).push(request.clone());
            self.came.notify_all();
            let script = {
                let scripts = lock(&self.scripts);
                scripts.get(&request.target).or_else(|| scripts.get("")).cloned()
            };
            let stream = stream.try_clone().expect("open");
            let mut exchange = Exchange { request, before, stream, closed: false };
            before += 1;
            match script {
                Some(script) => script(&mut exchange),
                None => exchange.status(404, ""),
            }
            if exchange.closed {
                break;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    loop {
        let before = head.len();
        match reader.read_line(&mut head) {
            Ok(0) | Err(_) => return None,
            Ok(_) if head[before..].trim_end().is_empty() => return Some(head),
            Ok(_) => {}
        }
    }
}

/// A request and its response. Errors of closed connections are ignored.
pub struct Exchange {
    pub request: RecordedRequest,
    /// The number of earlier requests on the same connection.
    pub before: usize,
    stream: TcpStream,
    closed: bool,
}

impl Exchange {
    /// Sends a complete response: the whole object or the requested range.
    pub fn send(&mut self, bytes: &[u8]) {
        let from = self.request.from().min(bytes.len());
        self.head(from, bytes.len());
        if !self.request.is_head() {
            self.raw(&bytes[from..]);
        }
    }

    /// Sends the head of a response with the bytes from `from` to `end`.
    pub fn head(&mut self, from: usize, end: usize) {
        let length = end - from;
        let head = if from > 0 {
            let range = format!("Content-Range: bytes {from}-{}/{end}\r\n", end - 1);
            format!("HTTP/1.1 206 Partial Content\r\n{range}Content-Length: {length}\r\n\r\n")
        } else {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
        };
        self.raw(head.as_bytes());
    }

    /// Sends a response without a body. `headers` end with a line feed each.
    pub fn status(&mut self, status: u16, headers: &str) {
        let headers = headers.replace('\n', "\r\n");
        self.raw(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n{headers}\r\n").as_bytes());
    }

    /// Sends the head of a chunked response.
    pub fn chunked(&mut self) {
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    /// Sends a chunk; an empty one ends the body. Returns false if the connection is closed.
    pub fn chunk(&mut self, bytes: &[u8]) -> bool {
        let text = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.raw(&text)
    }

    /// Sends bytes as they are. Returns false if the connection is closed.
    pub fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Waits until the client closes the connection.
    pub fn hang(&mut self) {
        let _ = self.stream.read(&mut [0]);
        self.closed = true;
    }
}

/// A counter of events that threads wait for.
#[derive(Default, Clone)]
pub struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    /// Counts one event, and wakes the waiting threads.
    pub fn open(&self) {
        *lock(&self.0.0) += 1;
        self.0.1.notify_all();
    }

    /// The number of events so far.
    pub fn opened(&self) -> usize {
        *lock(&self.0.0)
    }

    /// Waits until there were this many events.
    #[track_caller]
    pub fn wait(&self, times: usize) {
        let started = Instant::now();
        let few = |opened: &mut usize| *opened < times;
        let waited = self.0.1.wait_timeout_while(lock(&self.0.0), TIMEOUT, few);
        let late = waited.expect("the lock is not poisoned").1.timed_out();
        assert!(!late, "the gate was not opened {times} times in {:?}", started.elapsed());
    }
}
