//! Expensive pages delay only other pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix_stored::nix::Compression;

use super::{BROWSER, page_of};
use crate::support::cache::TestCache;
use crate::support::daemon::Daemon;
use crate::support::objects::{Sample, sample};
use crate::support::wire::Wire;

/// The limit for a narinfo request of another client.
const TIMEOUT: Duration = Duration::from_secs(5);

const MIB: usize = 1024 * 1024;

/// The name of the key in [`KEY`].
const NAME: &str = "test-1";

/// A valid public key.
const KEY: &str = "test-1:Q50WW5eEQ+zEAmyYW6qFkj+SuOGipY/hpNhJkXYQOKo=";

/// An invalid signature with this number. Checking it takes as long as checking a valid one.
fn signature(number: usize) -> String {
    use base64::Engine;
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    format!("Sig: {NAME}:{}\n", base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn daemon_with(sample: &Sample, narinfo: &str, more: &[(&str, &[u8])]) -> Daemon {
    let daemon = Daemon::builder().env("NIX_STORED_TRUSTED_PUBLIC_KEYS", KEY).start();
    let write = |path: &str, bytes: &[u8]| {
        std::fs::write(daemon.dir().join(&path[1..]), bytes).expect("writable");
    };
    write(&sample.nar_path, &sample.nar);
    write(&sample.narinfo_path, narinfo.as_bytes());
    more.iter().for_each(|(path, bytes)| write(path, bytes));
    daemon
}

/// Requests a page several times concurrently, and meanwhile `nix-cache-info` repeatedly. Returns
/// the statuses of the pages, and the longest duration of the other requests.
fn request_pages(daemon: &Daemon, path: &str, times: usize) -> (Vec<u16>, Duration) {
    let done = AtomicBool::new(false);
    let mut wires: Vec<Wire> = (0..times).map(|_| Wire::to(daemon)).collect();
    for wire in &mut wires {
        wire.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n"));
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let started = Instant::now();
                let response = Wire::to(daemon).request("GET", "/nix-cache-info", b"");
                assert_eq!(response.status, 200);
                longest = longest.max(started.elapsed());
            }
            longest
        });
        let statuses = wires.iter_mut().map(|wire| wire.response().status).collect();
        done.store(true, Ordering::Relaxed);
        (statuses, other.join().expect("reading succeeds"))
    })
}

#[test]
fn thousands_of_signatures_delay_no_other_request() {
    let sample = sample(1, b"x");
    let signatures: String = (0..9000).map(signature).collect();
    let daemon = daemon_with(&sample, &format!("{}{signatures}", sample.narinfo), &[]);
    let (_, longest) = request_pages(&daemon, &page_of(&sample), 48);
    assert!(longest < TIMEOUT, "{longest:?}");
    // The same narinfo as an upload.
    let narinfo = format!("{}{signatures}", sample.narinfo);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..16)
            .map(|_| {
                let put = || {
                    Wire::to(&daemon)
                        .request("PUT", &sample.narinfo_path, narinfo.as_bytes())
                        .status
                };
                scope.spawn(put)
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let started = Instant::now();
                let response = Wire::to(&daemon).request("GET", "/nix-cache-info", b"");
                assert_eq!(response.status, 200);
                assert!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
            }
        });
        for upload in uploads {
            assert!([400, 422].contains(&upload.join().expect("a response arrives")));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn large_listings_take_little_memory() {
    let sample = sample(1, b"x");
    // The worst case for the memory of a listing's tree: many empty directories.
    let mut listing = "{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{".to_owned();
    let entry =
        |number: usize| format!("\"{number:06}\":{{\"type\":\"symlink\",\"target\":\"x\"}},");
    (0..45_000).for_each(|number| listing.push_str(&entry(number)));
    listing.push_str("\"z\":{\"type\":\"directory\",\"entries\":{}}}}}");
    assert!(listing.len() < 2 * MIB, "{}", listing.len());
    let path = sample.narinfo_path.replace(".narinfo", ".ls");
    let daemon = daemon_with(&sample, &sample.narinfo, &[(&path, listing.as_bytes())]);
    assert_eq!(request_pages(&daemon, &page_of(&sample), 1).0, [200]);
    let before = daemon.memory();
    let (statuses, longest) = request_pages(&daemon, &page_of(&sample), 32);
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(longest < TIMEOUT, "{longest:?}");
    let grown = daemon.peak_memory().saturating_sub(before);
    assert!(grown < 64 * MIB, "{grown} bytes");
}

/// A path with a file of zeros, compressed by zstd with this window.
fn with_window(number: u8, window_log: u32) -> Sample {
    let contents = [&[number], &vec![0; 150 * MIB][..]].concat();
    let sample = sample(number, &contents);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.window_log(window_log).expect("allowed");
    for chunk in sample.nar.chunks(MIB) {
        std::io::Write::write_all(&mut encoder, chunk).expect("packed");
    }
    sample.with_file(Compression::Zstd, encoder.finish().expect("packed"))
}

#[test]
fn nars_whose_files_are_listed_share_one_budget() {
    let daemon = Daemon::start();
    let samples: Vec<Sample> =
        (1..=6).map(|number| with_window(number, if number < 3 { 26 } else { 27 })).collect();
    for sample in &samples {
        let files = [
            (&sample.nar_path, &sample.nar[..]),
            (&sample.narinfo_path, sample.narinfo.as_bytes()),
        ];
        for (path, bytes) in files {
            std::fs::write(daemon.dir().join(&path[1..]), bytes).expect("writable");
        }
    }
    let page = |sample: &Sample| {
        let mut wire = Wire::to(&daemon);
        let path = page_of(sample);
        wire.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n"));
        wire.response().text()
    };
    let before = daemon.memory();
    std::thread::scope(|scope| {
        for sample in &samples {
            scope.spawn(|| page(sample));
        }
    });
    let grown = daemon.peak_memory().saturating_sub(before);
    assert!(grown < 96 * MIB + 32 * MIB, "{grown} bytes");
    daemon.wait_until("the file is listed", || page(&samples[0]).contains("the path itself"));
    let is_too_large = || page(&samples[5]).contains("needs more memory than pages may use");
    daemon.wait_until("the page does not unpack it", is_too_large);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_requests_that_would_wait_too_long_are_503() {
    let cache = TestCache::new();
    let (end, result) = std::sync::mpsc::channel::<()>();
    let result = Arc::new(std::sync::Mutex::new(result));
    let mut work = Vec::new();
    for _ in 0..2 {
        let (browser, result) = (Arc::clone(cache.browser()), Arc::clone(&result));
        let (begins, started) = tokio::sync::oneshot::channel();
        work.push(tokio::spawn(async move {
            let wait = move || {
                begins.send(()).expect("a receiver waits");
                let _ = result.lock().expect("the lock is not poisoned").recv();
            };
            browser.render(wait).await.expect("a permit is free");
        }));
        started.await.expect("the task starts");
    }
    for path in ["/", "/browse", "/browse/8ha1dhmx807czjczmwy078s4r9s254il"] {
        let response = cache.get_with(path, &[BROWSER, ("host", "x")]).await.is(503);
        assert_eq!(response.header("retry-after"), "5");
        response.contains("try again in a moment");
    }
    // Other requests do not wait.
    cache.get("/nix-cache-info").await.is(200);
    drop(end);
    for work in work {
        work.await.expect("the process ends");
    }
    cache.get_with("/browse", &[BROWSER, ("host", "x")]).await.is(200);
}
