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
    prlimit(Some(daemon.pid()), Resource::Nofile, limit).expect("a child process");
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
    // The work after the start is done.
    let seen = "\nnix_stored_store_seen_timestamp_seconds 1";
    while !kept.request("GET", "/metrics", b"").text().contains(seen) {
        std::thread::yield_now();
    }
    assert_eq!(kept.request("GET", "/health", b"").status, 200);
    // No more files can be opened: the limit is on descriptor numbers (getrlimit(2)), and the three
    // below it are never closed.
    limit_files(&daemon, 3);
    let mut waiting = Wire::to(&daemon);
    waiting.send("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n");
    daemon.wait_for_log("cannot accept connections");
    // Requests on open connections are still answered, with an error if they need a file.
    let sample = sample(1, b"x");
    for _ in 0..20 {
        assert_eq!(kept.request("GET", "/nix-cache-info", b"").status, 200);
        let busy = kept.request("GET", &sample.nar_path, b"");
        assert_eq!((busy.status, busy.header("retry-after")), (503, "1"), "{}", busy.text());
    }
    let health = kept.request("GET", "/health", b"");
    assert_eq!(health.status, 503);
    assert!(health.text().contains("no more files can be opened"), "{}", health.text());
    let (before, started) = (cpu(daemon.pid()), Instant::now());
    while started.elapsed() < Duration::from_secs(2) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    // At 100 ticks per second, a busy loop would use 200.
    let spent = cpu(daemon.pid()) - before;
    assert!(spent < 40, "{spent} ticks in two seconds");
    limit_files(&daemon, 1024);
    assert_eq!(waiting.response().status, 200);
    assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
    assert_eq!(kept.request("GET", "/health", b"").status, 200);
    daemon.wait_for_log("accepting connections again");
    assert_eq!(kept.request("PUT", &sample.nar_path, &sample.nar).status, 201);
    let log = daemon.stop().1;
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
}

#[test]
fn slow_downloads_above_the_limit_of_open_files_all_continue() {
    // This allows 768 connections, and 128 open files for responses.
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
    // 272 descriptors allow 16 connections, the minimum.
    let daemon = Daemon::builder().file_limit(272).start();
    // All are in an upload, because an idle connection would be closed for a new one.
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
    assert!(!waiting.has_answer(), "the client did not wait");
    served.pop();
    assert_eq!(waiting.response().status, 200);
    for mut wire in served {
        wire.send_bytes(&sample.nar);
        assert!([200, 201].contains(&wire.response().status));
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
        // So that the order of idle times is unambiguous.
        std::thread::park_timeout(Duration::from_millis(50));
    }
    // Each new connection replaces the one that has been idle longest.
    let started = Instant::now();
    let mut newcomers = Vec::new();
    for longest in idle.drain(..3) {
        let mut newcomer = Wire::to(&daemon);
        assert_eq!(newcomer.request("GET", "/nix-cache-info", b"").status, 200);
        newcomers.push(newcomer);
        assert!(longest.rest().is_empty());
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    for wire in idle.iter_mut().chain(&mut newcomers) {
        assert_eq!(wire.request("GET", "/nix-cache-info", b"").status, 200);
    }
    upload.send_bytes(&sample.nar);
    assert_eq!(upload.response().status, 201);
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
    // As many uploads as there are permits, all stalled.
    let mut still: Vec<Wire> = (0..256).map(|_| Wire::to(&daemon)).collect();
    for wire in &mut still {
        begin(wire);
        assert_eq!(wire.head().status, 100);
    }
    let started = Instant::now();
    let mut other = Wire::to(&daemon);
    begin(&mut other);
    assert_eq!(other.head().status, 100);
    other.send_bytes(&sample.nar);
    assert_eq!(other.response().status, 201);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // The stalled uploads can still be completed.
    let mut first = still.remove(0);
    first.send_bytes(&sample.nar);
    assert_eq!(first.response().status, 200);
}
