//! Thousands of clients that send one byte per second, and one that downloads a NAR.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::wire::Wire;

/// The number of slow clients.
const SLOW: usize = 5000;

/// The limit for a download of the NAR, which usually takes a moment.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The first bytes of a request whose head never ends.
fn head() -> Vec<u8> {
    [&b"GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nX-Slow: "[..], &[b'x'; 1000]].concat()
}

/// Raises the limit of open files of this process.
fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    assert!(maximum.is_none_or(|most| most > SLOW as u64 + 1000), "ulimit -Hn is {maximum:?}");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("allowed");
}

/// Clients that each send one byte per second.
struct Crowd {
    slow: Vec<TcpStream>,
    sent: usize,
}

impl Crowd {
    fn gather(address: &str) -> Self {
        raise_file_limit();
        let slow = (0..SLOW).map(|_| {
            let stream = TcpStream::connect(address).expect("connected");
            stream.set_nonblocking(true).expect("the option is set");
            stream
        });
        Self { slow: slow.collect(), sent: 0 }
    }

    /// Sends the next byte of each client. Returns the number of open connections.
    fn send(&mut self, head: &[u8]) -> usize {
        let byte = [head[self.sent]];
        self.sent += 1;
        self.slow.retain_mut(|stream| match stream.write(&byte) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        self.slow.len()
    }
}

/// Downloads the NAR several times. Returns the duration of each download.
fn fetch(address: &str, sample: &Sample) -> Vec<Duration> {
    let fetch = |_| {
        let started = Instant::now();
        let response = Wire::to_address(address).request("GET", &sample.nar_path, b"");
        assert!(response.status == 200 && response.body == sample.nar);
        started.elapsed()
    };
    (0..5).map(fetch).collect()
}

/// Downloads the NAR while the crowd sends.
fn fetch_in_the_crowd(address: &str, sample: &Sample) -> (Vec<Duration>, usize) {
    let mut crowd = Crowd::gather(address);
    let (head, done) = (head(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let fetched = scope.spawn(|| {
            let took = fetch(address, sample);
            done.store(true, Ordering::Relaxed);
            took
        });
        let mut connected = SLOW;
        for _ in 0..100 {
            connected = crowd.send(&head);
            if done.load(Ordering::Relaxed) || fetched.is_finished() {
                break;
            }
            std::thread::park_timeout(Duration::from_secs(1));
        }
        (fetched.join().expect("the NARs arrive"), connected)
    })
}

fn daemon_with(sample: &Sample, files: Option<u64>) -> Daemon {
    let builder = Daemon::builder();
    let daemon = match files {
        Some(files) => builder.file_limit(files),
        None => builder,
    };
    let daemon = daemon.start();
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    daemon
}

#[test]
fn thousands_of_clients_that_send_a_byte_a_second_delay_no_download() {
    let sample = sample(1, &Noise::new(1).bytes(5 << 20));
    let daemon = daemon_with(&sample, None);
    let address = daemon.url().trim_start_matches("http://");
    let before = daemon.peak_memory();
    let (took, connected) = fetch_in_the_crowd(address, &sample);
    assert!(took.iter().all(|took| *took < TIMEOUT), "{took:?}");
    assert_eq!(connected, SLOW, "the slow clients were not connected");
    // A connection that has sent only a few bytes costs little memory.
    let cost = (daemon.peak_memory() - before) / SLOW;
    assert!(cost < 40_000, "{cost} bytes a connection");
}

#[test]
fn slow_connections_above_the_limit_are_closed_in_favour_of_a_new_request() {
    let sample = sample(1, &Noise::new(1).bytes(5 << 20));
    // This allows 1,536 connections.
    let daemon = daemon_with(&sample, Some(2048));
    let address = daemon.url().trim_start_matches("http://");
    let (took, _) = fetch_in_the_crowd(address, &sample);
    assert!(took[0] < Duration::from_secs(60), "{took:?}");
    daemon.wait_for_log("connection limit reached");
}
