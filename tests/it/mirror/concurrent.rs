//! Many clients at a time: each object is requested from the upstream once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::Duration;

use nix_stored::nix::Sha256Hash;
use sha2::{Digest, Sha256};

use super::mirror_of;
use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty, objects, staging};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{nar_of_file, sample};
use crate::support::scripted_upstream::{Exchange, Gate, ScriptedUpstream};
use crate::support::wire::Wire;

const MIB: usize = 1024 * 1024;

/// A path with a NAR that is too large for memory: the same MiB many times.
struct Large {
    head: Vec<u8>,
    block: Vec<u8>,
    blocks: usize,
    tail: Vec<u8>,
    narinfo: String,
    narinfo_path: String,
    nar_path: String,
}

impl Large {
    fn new(mib: usize) -> Self {
        let empty = nar_of_file(b"");
        // A NAR ends with the length of the contents, eight bytes, and a closing parenthesis,
        // sixteen.
        let (head, tail) = (&empty[..empty.len() - 24], &empty[empty.len() - 16..]);
        let mut large = Self {
            head: [head, &((mib * MIB) as u64).to_le_bytes()].concat(),
            block: Noise::new(1).bytes(MIB),
            blocks: mib,
            tail: tail.to_vec(),
            narinfo: String::new(),
            narinfo_path: String::new(),
            nar_path: String::new(),
        };
        let mut hasher = Sha256::new();
        large.pieces(0..large.len()).for_each(|piece| hasher.update(piece));
        let hash = Sha256Hash::new(hasher.finalize().into());
        let (url, size) = (format!("nar/{}.nar", hash.to_nix32()), large.len());
        let small = sample(1, b"");
        large.narinfo = format!(
            "StorePath: {}\nURL: {url}\nCompression: none\nFileHash: {hash}\nFileSize: {size}\n\
             NarHash: {hash}\nNarSize: {size}\nReferences: \n",
            small.store_path
        );
        large.narinfo_path = small.narinfo_path;
        large.nar_path = format!("/{url}");
        large
    }

    fn len(&self) -> usize {
        self.head.len() + self.blocks * MIB + self.tail.len()
    }

    /// The contiguous bytes at `offset`.
    fn at(&self, offset: usize) -> &[u8] {
        match offset.checked_sub(self.head.len()) {
            None => &self.head[offset..],
            Some(inner) if inner < self.blocks * MIB => &self.block[inner % MIB..],
            Some(inner) => &self.tail[inner - self.blocks * MIB..],
        }
    }

    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let piece = self.at(at);
            let piece = &piece[..piece.len().min(range.end - at)];
            at += piece.len();
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// Sends a range. Returns false if the connection is closed.
    fn send(&self, exchange: &mut Exchange, range: Range<usize>) -> bool {
        self.pieces(range).all(|piece| exchange.raw(piece))
    }

    #[track_caller]
    fn assert_is_at(&self, offset: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in self.pieces(offset..offset + bytes.len()) {
            let (now, later) = rest.split_at(piece.len());
            assert!(now == piece, "other bytes around {offset}");
            rest = later;
        }
    }
}

/// An upstream with a large path, whose NAR is sent by `script`.
fn upstream_of(
    large: &Arc<Large>,
    script: impl Fn(&Large, &mut Exchange) + Send + Sync + 'static,
) -> ScriptedUpstream {
    let upstream = ScriptedUpstream::start();
    upstream.has(&large.narinfo_path, large.narinfo.as_bytes());
    let nar = Arc::clone(large);
    upstream.on(&large.nar_path, move |exchange| script(&nar, exchange));
    upstream
}

/// A client during a download.
struct Download<'a> {
    large: &'a Large,
    stream: TcpStream,
    at: usize,
}

impl<'a> Download<'a> {
    /// Requests the narinfo and the NAR, and returns when the NAR begins to arrive.
    fn begin(mirror: &Daemon, large: &'a Large) -> Self {
        assert_eq!(mirror.get(&large.narinfo_path).0, 200);
        let address = mirror.url().trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the listener accepts");
        stream.set_read_timeout(Some(Duration::from_secs(240))).expect("the option is set");
        write!(stream, "GET {} HTTP/1.1\r\nHost: x\r\n\r\n", large.nar_path).expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head arrives");
            head.extend_from_slice(&byte);
        }
        let head = String::from_utf8(head).expect("ASCII");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = format!("content-length: {}\r\n", large.len());
        assert!(head.to_ascii_lowercase().contains(&length), "{head}");
        let mut download = Self { large, stream, at: 0 };
        download.read(1);
        download
    }

    /// Reads at least `count` more bytes, and compares them.
    fn read(&mut self, count: usize) {
        let (mut buffer, end) = (vec![0; 256 * 1024], self.at + count);
        while self.at < end {
            let count = self.stream.read(&mut buffer).expect("more bytes arrive");
            assert!(count > 0, "it ended after {} bytes", self.at);
            self.large.assert_is_at(self.at, &buffer[..count]);
            self.at += count;
        }
    }

    fn finish(mut self) {
        self.read(self.large.len() - self.at);
    }

    /// Closes the connection, and returns when the daemon has noticed it.
    fn leave(self, mirror: &Daemon) {
        let before = mirror.open_files();
        drop(self);
        mirror.wait_until("the connection is closed", || mirror.open_files() < before);
    }
}

#[test]
fn fifty_clients_cause_one_nar_request_and_little_memory() {
    const CLIENTS: usize = 50;
    let large = Arc::new(Large::new(500));
    let (resume, sent) = (Gate::default(), Gate::default());
    let upstream = upstream_of(&large, {
        let (resume, sent) = (resume.clone(), sent.clone());
        move |large, exchange| {
            let (half, last) = (large.len() / 2, large.len() - 1);
            exchange.head(0, large.len());
            large.send(exchange, 0..half);
            resume.wait(1);
            large.send(exchange, half..last);
            sent.open();
            resume.wait(2);
            large.send(exchange, last..large.len());
        }
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let started = Barrier::new(CLIENTS + 1);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let download = Download::begin(&mirror, &large);
                // All clients have received bytes, and the upstream has not sent half of the NAR.
                started.wait();
                sent.wait(1);
                // No client has read more until now, and the upstream did not have to wait for
                // that.
                download.finish();
            });
        }
        let leaving = Download::begin(&mirror, &large);
        started.wait();
        drop(leaving);
        resume.open();
        sent.wait(1);
        resume.open();
    });
    assert_eq!(upstream.count(&large.narinfo_path), 1);
    assert_eq!(upstream.count(&large.nar_path), 1);
    upstream.stop();
    assert_eq!(mirror.get(&large.narinfo_path).0, 200);
    let peak = mirror.peak_memory() / MIB;
    eprintln!("{peak} MiB at most");
    assert!(peak < 128, "{peak} MiB");
    assert_eq!(assert_consistent(mirror.dir()), 1);
    assert_staging_is_empty(mirror.dir());
}

/// An upstream that sends the second half when the gate is opened.
fn halting_upstream(large: &Arc<Large>) -> (ScriptedUpstream, Gate) {
    let gate = Gate::default();
    let resume = gate.clone();
    let upstream = upstream_of(large, move |large, exchange| {
        exchange.head(0, large.len());
        large.send(exchange, 0..large.len() / 2);
        resume.wait(1);
        large.send(exchange, large.len() / 2..large.len());
    });
    (upstream, gate)
}

#[test]
fn a_reader_that_disconnects_does_not_disturb_the_others() {
    let large = Arc::new(Large::new(8));
    let (upstream, resume) = halting_upstream(&large);
    let mirror = mirror_of(&[&upstream.url()]).start();
    let (first, second) = (Download::begin(&mirror, &large), Download::begin(&mirror, &large));
    first.leave(&mirror);
    resume.open();
    second.finish();
    assert_eq!(upstream.count(&large.nar_path), 1);
    assert_eq!(assert_consistent(mirror.dir()), 1);
}

#[test]
fn a_fetch_without_readers_is_finished_and_stored() {
    let large = Arc::new(Large::new(8));
    let (upstream, resume) = halting_upstream(&large);
    let mirror = mirror_of(&[&upstream.url()]).start();
    Download::begin(&mirror, &large).leave(&mirror);
    resume.open();
    let narinfo = mirror.dir().join(&large.narinfo_path[1..]);
    mirror.wait_until("the NAR is stored", || narinfo.exists());
    assert_eq!(assert_consistent(mirror.dir()), 1);
    assert_staging_is_empty(mirror.dir());
    let nar = mirror.get(&large.nar_path);
    assert!(nar.0 == 200 && nar.1.len() == large.len());
    assert_eq!(upstream.count(&large.nar_path), 1);
}

#[test]
fn a_fetch_without_readers_is_aborted_if_the_nar_is_not_stored() {
    let large = Arc::new(Large::new(1024));
    let (resume, stopped) = (Gate::default(), Gate::default());
    let upstream = upstream_of(&large, {
        let (resume, stopped) = (resume.clone(), stopped.clone());
        move |large, exchange| {
            exchange.head(0, large.len());
            large.send(exchange, 0..8 * MIB);
            resume.wait(1);
            // A gigabyte is more than all buffers on the way.
            if !large.send(exchange, 8 * MIB..large.len()) {
                stopped.open();
            }
        }
    });
    let mirror = mirror_of(&[&format!("{}?store=0", upstream.url())]).start();
    Download::begin(&mirror, &large).leave(&mirror);
    resume.open();
    stopped.wait(1);
    mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() == 1);
    assert_eq!(objects(mirror.dir()), [""; 0]);
    // A later client gets the NAR, with another request.
    Download::begin(&mirror, &large).leave(&mirror);
    assert_eq!(upstream.count(&large.nar_path), 2);
}

/// The number of concurrent calls.
#[derive(Default)]
struct ConcurrentCalls {
    now_and_most: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl ConcurrentCalls {
    /// Counts a call during `work`.
    fn count(&self, work: impl FnOnce()) {
        let count = |change: &dyn Fn(&mut (usize, usize))| {
            change(&mut self.now_and_most.lock().expect("the lock is not poisoned"));
            self.changed.notify_all();
        };
        count(&|(now, most)| {
            *now += 1;
            *most = (*most).max(*now);
        });
        work();
        count(&|(now, _)| *now -= 1);
    }

    /// Waits until there were this many concurrent calls.
    fn wait(&self, enough: usize) {
        let count = self.now_and_most.lock().expect("the lock is not poisoned");
        let few = |count: &mut (usize, usize)| count.1 < enough;
        let waited = self.changed.wait_timeout_while(count, Duration::from_secs(60), few);
        assert!(
            !waited.expect("the lock is not poisoned").1.timed_out(),
            "there were never {enough} concurrent calls"
        );
    }

    fn most(&self) -> usize {
        self.now_and_most.lock().expect("the lock is not poisoned").1
    }
}

#[test]
fn five_thousand_absent_paths_are_requested_once_each_and_64_at_a_time() {
    const PATHS: usize = 5000;
    const CLIENTS: usize = 384;
    /// The number of clients that request the same paths.
    const EACH: usize = 3;
    let (together, resume) = (Arc::new(ConcurrentCalls::default()), Gate::default());
    let upstream = ScriptedUpstream::start();
    upstream.otherwise({
        let (together, resume) = (Arc::clone(&together), resume.clone());
        move |exchange| {
            together.count(|| resume.wait(1));
            exchange.status(404, "");
        }
    });
    let mirror = mirror_of(&[&format!("{}?timeout=5m", upstream.url())]).start();
    let sent = Barrier::new(CLIENTS + 1);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (mirror, sent) = (&mirror, &sent);
            scope.spawn(move || {
                let mut wire = Wire::to(mirror);
                for number in (client / EACH..PATHS).step_by(CLIENTS / EACH) {
                    let name = format!("{number:04}").repeat(8);
                    wire.send(&format!("GET /{name}.narinfo HTTP/1.1\r\nHost: x\r\n\r\n"));
                    if number < CLIENTS / EACH {
                        sent.wait();
                    }
                    assert_eq!(wire.response().status, 404);
                }
            });
        }
        sent.wait();
        together.wait(64);
        // Twice as many requests are waiting. This time would be enough to send them.
        let mut wire = Wire::to(&mirror);
        for _ in 0..500 {
            assert_eq!(wire.request("GET", "/nix-cache-info", b"").status, 200);
        }
        resume.open();
    });
    assert_eq!(together.most(), 64);
    let mut asked: Vec<String> =
        upstream.requests().into_iter().map(|asked| asked.target).collect();
    assert_eq!(asked.len(), PATHS);
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), PATHS, "some were requested twice");
}
