//! More load than the daemon can serve: it refuses requests or lets clients wait, and recovers.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::sample;
use crate::support::wire::Wire;

fn limit_files(daemon: &Daemon, files: u64) {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(files), maximum };
    prlimit(Some(daemon.pid()), Resource::Nofile, limit).expect("it is a child of ours");
}

/// User and system time of a process, in clock ticks (proc_pid_stat(5)).
fn cpu(pid: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let stat = stat.expect("the process is there");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn without_free_descriptors_the_daemon_waits_without_spinning_and_recovers() {
    let daemon = Daemon::start();
    let mut kept = Wire::to(&daemon);
    // What it does by itself at its start is over.
    let seen = "\nnix_stored_store_seen_timestamp_seconds 1";
    while !kept.request("GET", "/metrics", b"").text().contains(seen) {
        std::thread::yield_now();
    }
    assert_eq!(kept.request("GET", "/health", b"").status, 200);
    // Not one more can be opened, whichever number becomes free: the limit is on the numbers
    // (getrlimit(2)), and the three below it are never closed.
    limit_files(&daemon, 3);
    let mut waiting = Wire::to(&daemon);
    waiting.send("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n");
    daemon.wait_for_log("cannot accept connections");
    // Who is connected is still answered, with a reason where a file is needed for it.
    let sample = sample(1, b"x");
    for _ in 0..20 {
        assert_eq!(kept.request("GET", "/nix-cache-info", b"").status, 200);
        let busy = kept.request("GET", &sample.nar_path, b"");
        assert_eq!((busy.status, busy.header("retry-after")), (503, "1"), "{}", busy.text());
    }
    let health = kept.request("GET", "/health", b"");
    assert_eq!(health.status, 503);
    assert!(health.text().contains("no more files can be opened"), "{}", health.text());
    let (before, begun) = (cpu(daemon.pid()), Instant::now());
    while begun.elapsed() < Duration::from_secs(2) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    // At a hundred ticks a second, a busy loop would have taken 200.
    let spent = cpu(daemon.pid()) - before;
    assert!(spent < 40, "{spent} ticks in two seconds");
    limit_files(&daemon, 1024);
    assert_eq!(waiting.answer().status, 200);
    assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
    assert_eq!(kept.request("GET", "/health", b"").status, 200);
    daemon.wait_for_log("accepting connections again");
    assert_eq!(kept.request("PUT", &sample.nar_path, &sample.nar).status, 201);
    let log = daemon.stop().1;
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
}

#[test]
fn slow_downloads_above_the_limit_of_open_files_all_continue() {
    // Room for 768 connections, and for 128 files of answers.
    let daemon = Daemon::builder().file_limit(1024).start();
    let large = sample(1, &Noise::new(1).bytes(5 << 20));
    assert_eq!(Wire::to(&daemon).request("PUT", &large.nar_path, &large.nar).status, 201);
    let before = daemon.open_files();
    let request =
        format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", large.nar_path);
    let mut slow: Vec<Wire> = (0..160).map(|_| Wire::to(&daemon)).collect();
    for wire in &mut slow {
        wire.send(&request);
        assert_eq!(wire.head().status, 200);
    }
    assert!(Wire::to(&daemon).request("GET", &large.nar_path, b"").body == large.nar);
    let more = daemon.open_files() - before;
    assert!(more < 160 + 128 + 16, "{more} more are open");
    for wire in slow {
        assert!(wire.rest() == large.nar);
    }
}

#[test]
fn connections_above_the_limit_wait() {
    // Room for 272 descriptors is room for 16 connections, the least that it serves at a time.
    let daemon = Daemon::builder().file_limit(272).start();
    // Each is in the middle of an upload: idle ones would make room.
    let mut served: Vec<Wire> = (0..16).map(|_| Wire::to(&daemon)).collect();
    let sample = sample(1, b"x");
    for wire in &mut served {
        wire.send(&format!(
            "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            sample.nar_path,
            sample.nar.len()
        ));
        assert_eq!(wire.head().status, 100);
    }
    let mut waiting = Wire::to(&daemon);
    waiting.send("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n");
    daemon.wait_for_log("connection limit reached; new connections wait");
    assert!(!waiting.has_answer(), "it did not wait");
    served.pop();
    assert_eq!(waiting.answer().status, 200);
    for mut wire in served {
        wire.send_bytes(&sample.nar);
        assert!([200, 201].contains(&wire.answer().status));
    }
}

#[test]
fn at_the_connection_limit_the_longest_idle_connection_is_closed() {
    let daemon = Daemon::builder().file_limit(272).start();
    let sample = sample(1, &[1; 200_000]);
    let mut upload = Wire::to(&daemon);
    upload.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        sample.nar_path,
        sample.nar.len()
    ));
    assert_eq!(upload.head().status, 100);
    let mut idle: Vec<Wire> = (0..15).map(|_| Wire::to(&daemon)).collect();
    for wire in &mut idle {
        assert_eq!(wire.request("GET", "/nix-cache-info", b"").status, 200);
        // So that it is clear which one has been idle for longer.
        std::thread::park_timeout(Duration::from_millis(50));
    }
    // Each for the one that has been idle longest then.
    let begun = Instant::now();
    let mut newcomers = Vec::new();
    for longest in idle.drain(..3) {
        let mut newcomer = Wire::to(&daemon);
        assert_eq!(newcomer.request("GET", "/nix-cache-info", b"").status, 200);
        newcomers.push(newcomer);
        assert!(longest.rest().is_empty());
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for wire in idle.iter_mut().chain(&mut newcomers) {
        assert_eq!(wire.request("GET", "/nix-cache-info", b"").status, 200);
    }
    upload.send_bytes(&sample.nar);
    assert_eq!(upload.answer().status, 201);
}

#[test]
fn stalled_large_uploads_do_not_keep_their_permits() {
    let daemon = Daemon::start();
    let sample = sample(1, &[1; 200_000]);
    let begin = |wire: &mut Wire| {
        wire.send(&format!(
            "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            sample.nar_path,
            sample.nar.len()
        ));
    };
    // As many as have a turn, and none sends anything.
    let mut still: Vec<Wire> = (0..256).map(|_| Wire::to(&daemon)).collect();
    for wire in &mut still {
        begin(wire);
        assert_eq!(wire.head().status, 100);
    }
    let begun = Instant::now();
    let mut other = Wire::to(&daemon);
    begin(&mut other);
    assert_eq!(other.head().status, 100);
    other.send_bytes(&sample.nar);
    assert_eq!(other.answer().status, 201);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // They can still be finished.
    let mut first = still.remove(0);
    first.send_bytes(&sample.nar);
    assert_eq!(first.answer().status, 200);
}
