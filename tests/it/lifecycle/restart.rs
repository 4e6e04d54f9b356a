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
use crate::support::wire::{RawResponse, Wire};

/// The process that holds the listening socket while daemons are replaced.
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
        self.listener.local_addr().expect("bound").to_string()
    }

    fn start(&self) -> Daemon {
        let listener = self.listener.try_clone().expect("open");
        Daemon::builder().dir(&self.scratch.join("cache")).socket(listener).start()
    }
}

/// Fails if the response is not the expected one.
#[track_caller]
fn expect(response: &RawResponse, status: u16, body: &[u8]) {
    assert_eq!(response.status, status, "{}", response.text());
    assert!(response.body == body, "another body");
}

/// A client that opens a connection for each request.
fn connecting_client(address: &str, samples: &[Sample], on: &AtomicBool, done: &AtomicUsize) {
    while on.load(Ordering::Relaxed) {
        for sample in samples {
            let response = Wire::to_address(address).request("GET", &sample.narinfo_path, b"");
            expect(&response, 200, sample.narinfo.as_bytes());
            let response = Wire::to_address(address).request("GET", &sample.nar_path, b"");
            expect(&response, 200, &sample.nar);
            done.fetch_add(2, Ordering::Relaxed);
        }
    }
}

/// A client that keeps its connection until the server closes it.
fn persistent_client(address: &str, samples: &[Sample], on: &AtomicBool, done: &AtomicUsize) {
    let mut wire = Wire::to_address(address);
    while on.load(Ordering::Relaxed) {
        for sample in samples {
            let response = wire.request("GET", &sample.nar_path, b"");
            expect(&response, 200, &sample.nar);
            done.fetch_add(1, Ordering::Relaxed);
            if response.header("connection") == "close" {
                wire = Wire::to_address(address);
            }
        }
    }
}

/// A client that uploads the same object repeatedly, and waits for `100 Continue`.
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
        let response = wire.response();
        assert!([200, 201].contains(&response.status), "{} {}", response.status, response.text());
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Starts a download of a NAR, and reads only its beginning.
fn begin_download(address: &str, sample: &Sample) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("the option is set");
    let path = &sample.nar_path;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("a response arrives");
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

/// Reads the rest of a download.
#[track_caller]
fn finish_download(mut stream: TcpStream, sample: &Sample) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the transfer is complete");
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
    // Much larger than the socket buffers, so that the transfer does not end before the client
    // reads.
    let large = sample(9, &Noise::new(9).bytes(48 << 20));
    store(&address, &large);
    let uploaded = sample(10, &Noise::new(10).bytes(3 << 20));

    let on = AtomicBool::new(true);
    let done: [AtomicUsize; 4] = Default::default();
    let daemon = std::thread::scope(|scope| {
        let clients = [
            scope.spawn(|| connecting_client(&address, &small, &on, &done[0])),
            scope.spawn(|| connecting_client(&address, &small, &on, &done[1])),
            scope.spawn(|| persistent_client(&address, &small, &on, &done[2])),
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
                // The next daemon starts while the last one still finishes a transfer.
                let next = activator.start();
                progress(&next);
                finish_download(slow, &large);
                Some(next)
            } else {
                // The next daemon starts after the last one has ended; meanwhile clients wait.
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
            client.join().expect("no request failed");
        }
        daemon
    });
    let (_, log) = daemon.stop();
    assert!(log.contains("all transfers were finished"), "{log}");
}

#[test]
fn a_request_on_an_accepted_connection_is_answered_during_the_restart() {
    let daemon = Daemon::start();
    // When the first connection has been served, the second one has been accepted.
    let mut late = Wire::to(&daemon);
    let mut kept = Wire::to(&daemon);
    assert_eq!(kept.request("GET", "/nix-cache-info", b"").status, 200);
    daemon.terminate();
    daemon.wait_for_log("no new connections");
    for wire in [&mut late, &mut kept] {
        let response = wire.request("GET", "/nix-cache-info", b"");
        assert_eq!((response.status, response.header("connection")), (200, "close"));
    }
    assert!(late.rest().is_empty() && kept.rest().is_empty());
    let (status, log) = daemon.stop();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("all transfers were finished"), "{log}");
}
