//! Uploads that hardly arrive: a byte now and then, so that nobody can say that they stand still.

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
        raise_file_limit();
        let begin = |(path, body): &(&str, &[u8])| {
            let mut wire = Wire::to(daemon);
            let length = body.len();
            wire.send(&format!(
                "PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            ));
            wire.send_bytes(&body[..at_once]);
            Upload { wire, body: body.to_vec(), sent: at_once }
        };
        let mut uploads: Vec<Upload> = bodies.iter().map(begin).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for upload in &mut uploads {
                    if upload.sent + 1 < upload.body.len() {
                        upload.wire.send_or_give_up(&upload.body[upload.sent..=upload.sent]);
                        upload.sent += 1;
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
        let uploads = self.uploads().into_iter();
        let finish = |mut upload: Upload| {
            upload.wire.send_or_give_up(&upload.body[upload.sent..]);
            upload.wire.answer()
        };
        uploads.map(finish).collect()
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
