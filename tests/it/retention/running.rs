//! Collections by the daemon disturb no request.

use std::path::Path;
use std::time::SystemTime;

use super::dir::{self, DAY};
use crate::support::daemon::{Builder, Daemon};
use crate::support::scratch::Scratch;

/// A daemon that collects every second.
fn collecting(dir: &Path) -> Builder {
    Daemon::builder().dir(dir).env("NIX_STORED_GC_INTERVAL", "1s")
}

fn count(dir: &Path) -> usize {
    dir::sizes(dir).len()
}

#[test]
fn the_daemon_enforces_its_limit_and_logs_it() {
    let (scratch, now) = (Scratch::new(), SystemTime::now());
    for path in 0..10_u32 {
        dir::put_path(scratch.path(), path as usize, &[], now - DAY * (2 + path));
    }
    let size: u64 = dir::sizes(scratch.path()).values().sum();
    let daemon =
        collecting(scratch.path()).env("NIX_STORED_MAX_SIZE", &(size / 2).to_string()).start();
    let line = daemon.wait_for_log("collected 6 paths and 6 other objects");
    assert!(line.contains(&format!("size_before={size}")), "{line}");
    // The most recently used paths are kept and served.
    assert_eq!(count(scratch.path()), 8);
    assert_eq!(daemon.get(&format!("/{}", dir::narinfo(3))).0, 200);
    assert_eq!(daemon.get(&format!("/{}", dir::narinfo(4))).0, 404);

    // Later collections remove paths that have become old, and log nothing if there are none.
    dir::put_path(scratch.path(), 20, &[], now - DAY * 40);
    dir::put(scratch.path(), &dir::nar(20), vec![0; size as usize], now - DAY * 40);
    daemon.wait_for_log("collected 1 paths and 1 other objects");
    let (status, log) = daemon.stop();
    assert!(status.success() && log.matches("collected").count() == 2, "{status} {log}");
    assert!(!log.contains("WARN") || !log.contains("above NIX_STORED_MAX_SIZE"), "{log}");
}

#[test]
fn without_a_limit_nothing_is_removed() {
    let (scratch, now) = (Scratch::new(), SystemTime::now());
    dir::put_path(scratch.path(), 1, &[], now - DAY * 400);
    dir::put(scratch.path(), &dir::nar(2), "an orphan", now - DAY * 400);
    let daemon = collecting(scratch.path()).start();
    assert_eq!(daemon.get(&format!("/{}", dir::nar(2))).0, 200);
    let (status, log) = daemon.stop();
    assert!(status.success() && !log.contains("collected"), "{log}");
    assert_eq!(count(scratch.path()), 3);
}

#[test]
fn harmful_or_unreachable_limits_are_logged() {
    let (scratch, now) = (Scratch::new(), SystemTime::now());
    dir::put_path(scratch.path(), 1, &[], now);
    let daemon = collecting(scratch.path())
        .env("NIX_STORED_MAX_SIZE", "1")
        .env("NIX_STORED_MAX_AGE", "29d")
        .start();
    let line = daemon.wait_for_log("NIX_STORED_MAX_AGE is shorter than 30 days");
    assert!(line.contains("WARN"), "{line}");
    let size: u64 = dir::sizes(scratch.path()).values().sum();
    let line =
        daemon.wait_for_log(&format!("the cache is {} bytes above NIX_STORED_MAX_SIZE", size - 1));
    assert!(line.contains("WARN"), "{line}");

    let scratch = Scratch::new();
    let daemon = collecting(scratch.path()).env("NIX_STORED_MAX_AGE", "30d").start();
    let (_, log) = daemon.stop();
    assert!(!log.contains("shorter than 30 days"), "{log}");
}

#[test]
fn a_daemon_that_stops_during_a_collection_leaves_every_closure_complete() {
    for end in [terminate, Daemon::kill] {
        // The collection may end before it is stopped, but not every time.
        let stopped = (0..10).any(|_| is_stopped_half_way(end));
        assert!(stopped, "no collection was stopped before its end");
    }
}

/// The number of paths. Higher numbers are older, and each path refers to those after it.
const PATHS: usize = 2000;

fn is_stopped_half_way(end: fn(Daemon)) -> bool {
    let (scratch, now) = (Scratch::new(), SystemTime::now());
    for path in 0..PATHS {
        let references: Vec<usize> = (0..path).rev().take(3).collect();
        dir::put_path(scratch.path(), path, &references, now - DAY * (40 + path as u32));
    }
    let before = dir::sizes(scratch.path());
    let daemon = collecting(scratch.path()).env("NIX_STORED_MAX_AGE", "30d").start();
    let first = scratch.join(&dir::narinfo(PATHS - 1));
    daemon.wait_until("the first path is removed", || !first.exists());
    end(daemon);
    dir::assert_whole(scratch.path(), &before);
    let left = count(scratch.path());

    // The next daemon completes the collection.
    let daemon = collecting(scratch.path()).env("NIX_STORED_MAX_AGE", "30d").start();
    daemon.wait_until("the last path is removed", || count(scratch.path()) == 0);
    left > 0
}

fn terminate(daemon: Daemon) {
    let (status, log) = daemon.stop();
    assert!(status.success(), "{status}:\n{log}");
    assert!(log.contains("stopped; all transfers were finished"), "{log}");
}
