//! Slow uploads: a byte now and then, which is not a stall.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::daemon::Daemon;
use super::wire::{Received, Wire};

/// How often each of them sends a byte.
const EVERY: Duration = Duration::from_millis(100);

/// One upload.
struct Upload {
    wire: Wire,
    body: Vec<u8>,
    sent: usize,
    chunked: bool,
}

impl Upload {
    /// Sends so many bytes more.
    fn send(&mut self, count: usize) {
        let bytes = &self.body[self.sent..self.sent + count];
        self.sent += count;
        if self.chunked {
            let chunk = [format!("{count:x}\r\n").as_bytes(), bytes, b"\r\n"].concat();
            self.wire.send_or_give_up(&chunk);
        } else {
            self.wire.send_or_give_up(bytes);
        }
    }

    /// Sends the rest, and returns the answer.
    #[track_caller]
    fn finish(mut self) -> Received {
        self.send(self.body.len() - self.sent);
        if self.chunked {
            self.wire.send_or_give_up(b"0\r\n\r\n");
        }
        self.wire.answer()
    }
}

/// Some uploads, until they are finished.
pub struct Trickle {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<Vec<Upload>>>,
}

impl Trickle {
    /// Begins to upload each body to its path: the first `at_once` bytes, and then byte after byte.
    /// None may end before it is finished.
    pub fn start(daemon: &Daemon, bodies: &[(&str, &[u8])], at_once: usize) -> Self {
        Self::begin(daemon, bodies, at_once, false)
    }

    /// The same by uploads that do not say how long they are.
    pub fn start_chunked(daemon: &Daemon, bodies: &[(&str, &[u8])], at_once: usize) -> Self {
        Self::begin(daemon, bodies, at_once, true)
    }

    fn begin(daemon: &Daemon, bodies: &[(&str, &[u8])], at_once: usize, chunked: bool) -> Self {
        raise_file_limit();
        let begin = |(path, body): &(&str, &[u8])| {
            let mut wire = Wire::to(daemon);
            let framing = match chunked {
                true => "Transfer-Encoding: chunked".to_owned(),
                false => format!("Content-Length: {}", body.len()),
            };
            wire.send(&format!("PUT {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"));
            let mut upload = Upload { wire, body: body.to_vec(), sent: 0, chunked };
            upload.send(at_once);
            upload
        };
        let mut uploads: Vec<Upload> = bodies.iter().map(begin).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for upload in &mut uploads {
                    if upload.sent + 1 < upload.body.len() {
                        upload.send(1);
                    }
                }
                std::thread::park_timeout(EVERY);
            }
            uploads
        });
        Self { stop, sender: Some(sender) }
    }

    fn uploads(&mut self) -> Vec<Upload> {
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.sender.take().expect("it ends once");
        sender.thread().unpark();
        sender.join().expect("sending does not panic")
    }

    /// Sends the rest of each at once; the answers.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Received> {
        self.uploads().into_iter().map(Upload::finish).collect()
    }
}

/// Room for many sockets in this process.
pub fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("it is allowed");
}

impl Drop for Trickle {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.uploads();
        }
    }
}
