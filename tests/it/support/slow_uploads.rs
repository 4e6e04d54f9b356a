//! Slow uploads: they send a byte at intervals, which is not a stall.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::daemon::Daemon;
use super::wire::{RawResponse, Wire};

/// The interval between two bytes of an upload.
const EVERY: Duration = Duration::from_millis(100);

struct Upload {
    wire: Wire,
    body: Vec<u8>,
    sent: usize,
    chunked: bool,
}

impl Upload {
    /// Sends the next `count` bytes.
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

    /// Sends the rest, and reads the response.
    #[track_caller]
    fn finish(mut self) -> RawResponse {
        self.send(self.body.len() - self.sent);
        if self.chunked {
            self.wire.send_or_give_up(b"0\r\n\r\n");
        }
        self.wire.response()
    }
}

/// Uploads that go on until they are finished or dropped.
pub struct SlowUploads {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<Vec<Upload>>>,
}

impl SlowUploads {
    /// Starts an upload of each body to its path: the first `at_once` bytes at once, then a byte at
    /// a time. The last byte is sent by [`finish`](Self::finish).
    pub fn start(daemon: &Daemon, bodies: &[(&str, &[u8])], at_once: usize) -> Self {
        Self::begin(daemon, bodies, at_once, false)
    }

    /// Like [`start`](Self::start), with chunked bodies.
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
        let sender = self.sender.take().expect("not finished yet");
        sender.thread().unpark();
        sender.join().expect("sending does not panic")
    }

    /// Sends the rest of all bodies, and returns the responses.
    #[track_caller]
    pub fn finish(mut self) -> Vec<RawResponse> {
        self.uploads().into_iter().map(Upload::finish).collect()
    }
}

/// Raises the limit of open files of this process.
pub fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("allowed");
}

impl Drop for SlowUploads {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.uploads();
        }
    }
}
