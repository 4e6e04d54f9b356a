//! A scripted upstream in this process: one script for each path, one thread for each connection.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::objects::Sample;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an upstream answers to one request.
type Script = Arc<dyn Fn(&mut Exchange) + Send + Sync>;

/// An upstream. When it is dropped it is gone, with all its connections.
pub struct Scripted {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<HashMap<String, Script>>,
    asked: Mutex<Vec<Asked>>,
    came: Condvar,
    connections: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What stands between the method and the version: a proxy is asked for whole URLs.
    pub target: String,
    /// The head with all its lines.
    pub head: String,
    /// Who sent it.
    pub peer: IpAddr,
}

impl Asked {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether it asks for no body.
    pub fn is_head(&self) -> bool {
        self.head.starts_with("HEAD ")
    }

    /// The first byte that is wanted.
    pub fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no script panics with a lock held")
}

impl Scripted {
    /// An upstream that has nothing.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// An upstream that has these.
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

    /// Its URL, and a second to answer.
    pub fn impatient(&self) -> String {
        format!("{}?timeout=1s", self.url())
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on `path` is answered so.
    pub fn on(&self, path: &str, script: impl Fn(&mut Exchange) + Send + Sync + 'static) {
        lock(&self.shared.scripts).insert(path.to_owned(), Arc::new(script));
    }

    /// From now on what has no script of its own is answered so.
    pub fn otherwise(&self, script: impl Fn(&mut Exchange) + Send + Sync + 'static) {
        self.on("", script);
    }

    /// From now on this is at `path`, and parts of it can be had.
    pub fn has(&self, path: &str, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.on(path, move |exchange| exchange.send(&bytes));
    }

    /// From now on everything is answered with this status.
    pub fn says(&self, status: u16) {
        self.otherwise(move |exchange| exchange.status(status, ""));
    }

    /// Everything that it was asked for.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// How often it was asked for this.
    pub fn count(&self, path: &str) -> usize {
        lock(&self.shared.asked).iter().filter(|asked| asked.target == path).count()
    }

    /// Waits until it has been asked for this so many times.
    #[track_caller]
    pub fn wait_for(&self, path: &str, count: usize) {
        let few = |asked: &mut Vec<Asked>| {
            asked.iter().filter(|asked| asked.target == path).count() < count
        };
        let asked = lock(&self.shared.asked);
        let waited = self.shared.came.wait_timeout_while(asked, PATIENCE, few);
        let late = waited.expect("no script panics with a lock held").1.timed_out();
        assert!(!late, "never asked for {path} {count} times: {:?}", self.asked());
    }

    /// Ends it: nobody can connect any more, and all connections break.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes it.
        let _ = TcpStream::connect(self.address);
        let _ = acceptor.join();
        for connection in lock(&self.shared.connections).drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let (stream, peer) = listener.accept().expect("it listens");
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            lock(&self.connections).push(stream.try_clone().expect("it is open"));
            let shared = Arc::clone(&self);
            std::thread::spawn(move || shared.serve(stream, peer.ip()));
        }
    }

    fn serve(&self, stream: TcpStream, peer: IpAddr) {
        let mut reader = BufReader::new(stream.try_clone().expect("it is open"));
        let mut before = 0;
        while let Some(head) = read_head(&mut reader) {
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let asked = Asked { target, head, peer };
            lock(&self.asked).push(asked.clone());
            self.came.notify_all();
            let script = {
                let scripts = lock(&self.scripts);
                scripts.get(&asked.target).or_else(|| scripts.get("")).cloned()
            };
            let stream = stream.try_clone().expect("it is open");
            let mut exchange = Exchange { asked, before, stream, closed: false };
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

/// One request and what is answered to it. Who has gone is not told.
pub struct Exchange {
    pub asked: Asked,
    /// How many requests came before it over the same connection.
    pub before: usize,
    stream: TcpStream,
    closed: bool,
}

impl Exchange {
    /// A whole answer: all of it, or the part that is wanted.
    pub fn send(&mut self, bytes: &[u8]) {
        let from = self.asked.from().min(bytes.len());
        self.head(from, bytes.len());
        if !self.asked.is_head() {
            self.raw(&bytes[from..]);
        }
    }

    /// The head of an answer with bytes from `from` to `end`.
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

    /// An answer without a body; `headers` end with a line feed each.
    pub fn status(&mut self, status: u16, headers: &str) {
        let headers = headers.replace('\n', "\r\n");
        self.raw(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n{headers}\r\n").as_bytes());
    }

    /// The head of an answer that nobody knows the length of.
    pub fn chunked(&mut self) {
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    /// A part of such an answer; none ends it. False if nobody takes it any more.
    pub fn chunk(&mut self, bytes: &[u8]) -> bool {
        let text = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.raw(&text)
    }

    /// Bytes as they are; false if nobody takes them any more.
    pub fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Breaks the connection off.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Does nothing until the other side has had enough.
    pub fn hang(&mut self) {
        let _ = self.stream.read(&mut [0]);
        self.closed = true;
    }
}

/// What several threads wait for.
#[derive(Default, Clone)]
pub struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    /// Lets through who waits, and one more step for who waits for steps.
    pub fn open(&self) {
        *lock(&self.0.0) += 1;
        self.0.1.notify_all();
    }

    /// How often it was opened.
    pub fn opened(&self) -> usize {
        *lock(&self.0.0)
    }

    /// Waits until it has been opened so many times.
    #[track_caller]
    pub fn wait(&self, times: usize) {
        let begun = Instant::now();
        let few = |opened: &mut usize| *opened < times;
        let waited = self.0.1.wait_timeout_while(lock(&self.0.0), PATIENCE, few);
        let late = waited.expect("nobody panics with the lock held").1.timed_out();
        assert!(!late, "the gate was not opened {times} times in {:?}", begun.elapsed());
    }
}
