//! Response bodies: files sent by the kernel and narinfos from memory, each byte correct.

use std::time::{Duration, Instant};

use crate::support::cache::TestCache;
use crate::support::daemon::Daemon;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

fn numbered(number: u8, size: u32) -> Sample {
    let contents: Vec<u8> =
        (0..size).map(|at| (at / 5 + at * 11 + u32::from(number)) as u8).collect();
    sample(number, &contents)
}

fn upload(daemon: &Daemon, sample: &Sample) {
    assert_eq!(Wire::to(daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
}

#[test]
fn responses_of_every_size_on_one_connection_do_not_mix() {
    let daemon = Daemon::start();
    // Sizes below and above the read buffer, the socket buffer, and the size of a send.
    let samples: Vec<Sample> = [10, 30_000, 40_000, 300_000, 1_048_576, 5_000_000, 40_001]
        .iter()
        .zip(1..)
        .map(|(size, number)| numbered(number, *size))
        .collect();
    for sample in &samples {
        upload(&daemon, sample);
    }
    let mut wire = Wire::to(&daemon);
    for _ in 0..3 {
        // Pipelined: each request is sent before the previous response has been read.
        for sample in &samples {
            wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", sample.nar_path));
            let range = sample.nar.len() / 3;
            wire.send(&format!(
                "GET {} HTTP/1.1\r\nHost: x\r\nRange: bytes={range}-\r\n\r\n",
                sample.nar_path
            ));
            wire.send("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        for sample in &samples {
            let whole = wire.response();
            assert!(whole.status == 200 && whole.body == sample.nar);
            let part = wire.response();
            assert!(part.status == 206 && part.body == sample.nar[sample.nar.len() / 3..]);
            assert!(wire.response().text().starts_with("StoreDir"));
        }
    }
}

#[test]
fn a_large_nar_is_sent_by_the_kernel() {
    let daemon = Daemon::start();
    let sample = numbered(1, 50_000_000);
    upload(&daemon, &sample);
    let mut wire = Wire::to(&daemon);
    wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", sample.nar_path));
    assert_eq!(wire.head().status, 200);
    // The socket buffer is full, so the file is still open: as a mapping with no resident page.
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.pid().as_raw_nonzero()));
    let maps = maps.expect("the daemon is there");
    let (_, map) = maps.split_once(&sample.nar_path).expect("the file is mapped");
    let resident =
        map.lines().find_map(|line| line.strip_prefix("Rss:")).expect("the field is present");
    assert_eq!(resident.trim(), "0 kB");
    assert!(wire.rest() == sample.nar);
}

#[test]
fn a_nar_is_sent_completely_without_the_faster_system_calls() {
    let scratch = Scratch::new();
    let sample = numbered(1, 3_000_000);
    upload(&Daemon::builder().dir(scratch.path()).start(), &sample);
    for call in ["sendfile", "preadv2", "setsockopt"] {
        for error in ["ENOSYS", "EINVAL", "EPERM", "EOPNOTSUPP"] {
            // The test sets options of this socket.
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
            let daemon =
                Daemon::builder().dir(scratch.path()).socket(listener).failing(call, error).start();
            let mut wire = Wire::to(&daemon);
            for _ in 0..2 {
                let whole = wire.request("GET", &sample.nar_path, b"");
                assert!(whole.status == 200 && whole.body == sample.nar, "{call} {error}");
            }
            wire.send(&format!(
                "GET {} HTTP/1.1\r\nHost: x\r\nRange: bytes=1000001-\r\n\r\n",
                sample.nar_path
            ));
            let part = wire.response();
            assert!(part.status == 206 && part.body == sample.nar[1_000_001..], "{call} {error}");
        }
    }
}

#[test]
fn a_slow_reader_gets_the_whole_nar_and_delays_no_other_client() {
    let daemon = Daemon::start();
    let sample = numbered(1, 20_000_000);
    upload(&daemon, &sample);
    let mut slow = Wire::to(&daemon);
    slow.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", sample.nar_path));
    assert_eq!(slow.head().status, 200);
    for _ in 0..3 {
        assert!(Wire::to(&daemon).request("GET", &sample.nar_path, b"").body == sample.nar);
    }
    assert!(slow.rest() == sample.nar);
}

#[test]
fn a_client_that_disconnects_frees_the_file() {
    let daemon = Daemon::start();
    let sample = numbered(1, 20_000_000);
    upload(&daemon, &sample);
    let maps = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid().as_raw_nonzero()));
        maps.expect("the daemon is there").matches(&sample.nar_path).count()
    };
    let mut wire = Wire::to(&daemon);
    wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", sample.nar_path));
    assert_eq!(wire.head().status, 200);
    assert_eq!(maps(), 1);
    drop(wire);
    daemon.wait_until("the mapping is removed", || maps() == 0);
}

#[tokio::test]
async fn a_cached_narinfo_is_never_older_than_the_last_change_by_this_daemon() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
    let zeros = format!("{}==", "A".repeat(86));
    for number in 10..40 {
        cache.get(&sample.narinfo_path).await.is(200);
        let signed = format!("{}Sig: key-{number}:{zeros}\n", sample.narinfo);
        cache.put(&sample.narinfo_path, signed).await.is(200);
        cache.get(&sample.narinfo_path).await.contains(&format!("key-{number}:"));
    }
}

#[tokio::test]
async fn a_change_by_another_process_is_served_within_seconds() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    let file = cache.dir().join(&sample.narinfo_path[1..]);
    let replace = |text: &str| {
        let staged = cache.dir().join("staged");
        std::fs::write(&staged, text).expect("writable");
        std::fs::rename(&staged, &file).expect("renamed");
        Instant::now()
    };
    cache.get(&sample.narinfo_path).await.is(404);
    std::fs::create_dir_all(cache.dir().join("nar")).expect("writable");
    std::fs::write(cache.dir().join(&sample.nar_path[1..]), &sample.nar).expect("writable");
    replace(&sample.narinfo);
    cache.get(&sample.narinfo_path).await.is(200).contains(&sample.narinfo);
    let other = format!("{}Sig: another-1:AAAA\n", sample.narinfo);
    let changed = replace(&other);
    while cache.get(&sample.narinfo_path).await.text() != other {
        assert!(changed.elapsed() < Duration::from_secs(10), "the old object is still served");
        tokio::task::yield_now().await;
    }
    std::fs::remove_file(&file).expect("present");
    let removed = Instant::now();
    while cache.get(&sample.narinfo_path).await.status != 404 {
        assert!(removed.elapsed() < Duration::from_secs(10), "the removed object is still served");
        tokio::task::yield_now().await;
    }
}
