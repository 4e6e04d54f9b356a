//! A restart without failed requests: the parent process keeps the listening socket, as systemd does, and running
//! transfers are finished.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::wire::{Received, Wire};

/// Who keeps the socket while daemons come and go.
struct Activator {
    listener: TcpListener,
    scratch: Scratch,
}

impl Activator {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        Self { listener, scratch: Scratch::new() }
    }

    fn address(&self) -> String {
        self.listener.local_addr().expect("it is bound").to_string()
    }

    fn start(&self) -> Daemon {
        let listener = self.listener.try_clone().expect("it is open");
        Daemon::builder().dir(&self.scratch.join("cache")).socket(listener).start()
    }
}

/// Fails on whatever is not the answer that was expected.
#[track_caller]
fn expect(answer: &Received, status: u16, body: &[u8]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.body == body, "another body");
}

/// A client with a connection for every request.
fn impatient(address: &str, samples: &[Sample], on: &AtomicBool, done: &AtomicUsize) {
    while on.load(Ordering::Relaxed) {
        for sample in samples {
            let answer = Wire::to_address(address).request("GET", &sample.narinfo_path, b"");
            expect(&answer, 200, sample.narinfo.as_bytes());
            let answer = Wire::to_address(address).request("GET", &sample.nar_path, b"");
            expect(&answer, 200, &sample.nar);
            done.fetch_add(2, Ordering::Relaxed);
        }
    }
}

/// A client that keeps its connection for as long as it is not told that it ends.
fn thrifty(address: &str, samples: &[Sample], on: &AtomicBool, done: &AtomicUsize) {
    let mut wire = Wire::to_address(address);
    while on.load(Ordering::Relaxed) {
        for sample in samples {
            let answer = wire.request("GET", &sample.nar_path, b"");
            expect(&answer, 200, &sample.nar);
            done.fetch_add(1, Ordering::Relaxed);
            if answer.header("connection") == "close" {
                wire = Wire::to_address(address);
            }
        }
    }
}

/// A client that uploads the same again and again, and waits for its `100 Continue`.
fn uploader(address: &str, sample: &Sample, on: &AtomicBool, done: &AtomicUsize) {
    while on.load(Ordering::Relaxed) {
        let mut wire = Wire::to_address(address);
        let (path, length) = (&sample.nar_path, sample.nar.len());
        wire.send(&format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        ));
        let interim = wire.head();
        assert_eq!(interim.status, 100, "{}", interim.head);
        wire.send_bytes(&sample.nar);
        let answer = wire.answer();
        assert!([200, 201].contains(&answer.status), "{} {}", answer.status, answer.text());
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client that has read a little of a NAR, and nothing else yet.
fn begin_download(address: &str, sample: &Sample) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("it can be set");
    let path = &sample.nar_path;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("it answers");
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

/// And now the rest.
#[track_caller]
fn finish_download(mut stream: TcpStream, sample: &Sample) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("it is sent to its end");
    let head = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("the head's end");
    assert!(rest[head + 4..] == sample.nar, "{} bytes", rest.len());
}

fn store(address: &str, sample: &Sample) {
    let mut wire = Wire::to_address(address);
    assert_eq!(wire.request("PUT", &sample.nar_path, &sample.nar).status, 201);
    let narinfo = sample.narinfo.as_bytes();
    assert_eq!(wire.request("PUT", &sample.narinfo_path, narinfo).status, 201);
}

#[test]
fn restarts_under_load_lose_no_request() {
    let activator = Activator::new();
    let address = activator.address();
    let mut daemon = activator.start();
    let small: Vec<Sample> =
        (1..5).map(|number| sample(number, &vec![number; 70_000 * usize::from(number)])).collect();
    small.iter().for_each(|sample| store(&address, sample));
    // Far more than sockets hold, so that it is under way for as long as nobody reads.
    let large = sample(9, &Noise::new(9).bytes(48 << 20));
    store(&address, &large);
    let uploaded = sample(10, &Noise::new(10).bytes(3 << 20));

    let on = AtomicBool::new(true);
    let done: [AtomicUsize; 4] = Default::default();
    let daemon = std::thread::scope(|scope| {
        let clients = [
            scope.spawn(|| impatient(&address, &small, &on, &done[0])),
            scope.spawn(|| impatient(&address, &small, &on, &done[1])),
            scope.spawn(|| thrifty(&address, &small, &on, &done[2])),
            scope.spawn(|| uploader(&address, &uploaded, &on, &done[3])),
        ];
        let progress = |daemon: &Daemon| {
            let before: Vec<usize> = done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
            daemon.wait_until("every client makes progress", || {
                let failed = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                let moved = |(done, before): (&AtomicUsize, &usize)| {
                    done.load(Ordering::Relaxed) > before + 2
                };
                failed || done.iter().zip(&before).all(moved)
            });
        };
        for round in 0..6 {
            progress(&daemon);
            let slow = begin_download(&address, &large);
            daemon.terminate();
            daemon.wait_for_log("no new connections");
            let next = if round % 2 == 0 {
                // The next one comes while the last one still has something to do.
                let next = activator.start();
                progress(&next);
                finish_download(slow, &large);
                Some(next)
            } else {
                // The next one comes when the last one is gone, and meanwhile clients wait.
                finish_download(slow, &large);
                None
            };
            let (status, log) = daemon.stop();
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(log.contains("all transfers were finished"), "{log}");
            daemon = next.unwrap_or_else(|| activator.start());
        }
        progress(&daemon);
        on.store(false, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no request of it failed");
        }
        daemon
    });
    let (_, log) = daemon.stop();
    assert!(log.contains("all transfers were finished"), "{log}");
}

#[test]
fn a_request_on_an_accepted_connection_is_answered_during_the_restart() {
    let daemon = Daemon::start();
    // The second is known to be accepted when the first has been served.
    let mut late = Wire::to(&daemon);
    let mut kept = Wire::to(&daemon);
    assert_eq!(kept.request("GET", "/nix-cache-info", b"").status, 200);
    daemon.terminate();
    daemon.wait_for_log("no new connections");
    for wire in [&mut late, &mut kept] {
        let answer = wire.request("GET", "/nix-cache-info", b"");
        assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    }
    assert!(late.rest().is_empty() && kept.rest().is_empty());
    let (status, log) = daemon.stop();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("all transfers were finished"), "{log}");
}
