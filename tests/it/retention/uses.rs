//! Recorded uses: GET and HEAD set the access time of the file.

use std::fs::{self, FileTimes};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use http::Method;
use nix_stored::cache::GRACE;
use nix_stored::retention::Limits;
use tokio_util::sync::CancellationToken;

use super::dir::{self, DAY, HOUR};
use crate::support::cache::{TestCache, TestResponse, request};
use crate::support::disk::Disk;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;

/// Writes an object of every kind, and a NAR that is large enough to be sent from its file.
fn put_one_of_each(dir: &Path, used: SystemTime) -> Vec<String> {
    let link = format!("{{\"archive\": \"../{}\"}}", dir::nar(1));
    let objects = [
        (dir::narinfo(1), dir::narinfo_text(1, 1, &[2], Some(1), 0)),
        (dir::nar(1), "a small NAR".to_owned()),
        (dir::nar(2), "a large NAR".repeat(10_000)),
        (dir::narinfo(1).replace("narinfo", "ls"), "{}".to_owned()),
        (dir::log(1), "it was built".to_owned()),
        (format!("realisations/sha256:{:064x}!out.doi", 1), "{}".to_owned()),
        (format!("debuginfo/{:040x}.debug", 1), link),
    ];
    for (key, text) in &objects {
        dir::put(dir, key, text, used);
    }
    objects.map(|(key, _)| key).into()
}

async fn ask(cache: &TestCache, method: &Method, key: &str) -> TestResponse {
    cache.send(request(method.clone(), &format!("/{key}"), Body::empty())).await
}

/// Whether a use since `since` is recorded. The clock of file systems is a few milliseconds late.
fn is_recorded(dir: &Path, key: &str, since: SystemTime) -> bool {
    dir::used(dir, key) > since - Duration::from_secs(60)
}

/// Waits until `state` returns true.
async fn until(what: &str, state: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !state() {
        assert!(Instant::now() < deadline, "timeout while waiting until {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits until all uses so far are recorded.
///
/// Uses are recorded in the order of a queue. The use of the first request is recorded before its
/// response, so all queued uses are recorded then. The second request covers uses that were still
/// being queued at the first.
async fn settle(cache: &TestCache) {
    let key = dir::nar(99);
    for _ in 0..2 {
        dir::put(&cache.dir(), &key, "x", dir::now() - 20 * HOUR);
        ask(cache, &Method::HEAD, &key).await.is(200);
        assert!(is_recorded(&cache.dir(), &key, dir::now()), "the use was recorded late");
    }
    fs::remove_file(cache.dir().join(key)).expect("present");
}

/// Requests every kind of object by GET and HEAD, in a directory on this kind of file system.
async fn check_that_uses_are_recorded(dir: &Path) {
    for method in [Method::GET, Method::HEAD] {
        let now = dir::now();
        let cache = TestCache::over(dir, GRACE);
        for key in put_one_of_each(dir, now - 2 * HOUR) {
            let before = fs::metadata(dir.join(&key)).expect("present");
            let first = ask(&cache, &method, &key).await.is(200);
            until(&format!("{method} of {key} is recorded"), || is_recorded(dir, &key, now)).await;
            let after = fs::metadata(dir.join(&key)).expect("present");
            assert_eq!(after.modified().unwrap(), before.modified().unwrap(), "{key}");
            let second = ask(&cache, &method, &key).await.is(200);
            for header in ["etag", "last-modified"] {
                assert_eq!(first.header(header), second.header(header), "{header} of {key}");
            }
        }
        // Another cache, which has nothing in memory.
        let cache = TestCache::over(dir, GRACE);
        for key in put_one_of_each(dir, now - 13 * HOUR) {
            ask(&cache, &method, &key).await.is(200);
            assert!(
                is_recorded(dir, &key, now),
                "the response for {key} came before the record of its use"
            );
        }
        let cache = TestCache::over(dir, GRACE);
        for key in put_one_of_each(dir, now - HOUR / 2) {
            let before = dir::used(dir, &key);
            ask(&cache, &method, &key).await.is(200);
            settle(&cache).await;
            assert_eq!(dir::used(dir, &key), before, "{method} of {key} was recorded");
        }
    }
}

/// Checks that listing and reading the whole cache does not count as use.
async fn check_that_looking_leaves_no_trace(dir: &Path) {
    let cache = TestCache::over(dir, GRACE);
    let now = dir::now();
    let keys = put_one_of_each(dir, now - 2 * DAY);
    for key in &keys {
        // With `relatime`, a read updates the access time if it is before the modification time.
        dir::set_times(dir, key, FileTimes::new().set_accessed(now - 3 * DAY));
    }
    cache.cache().inventory(|_| {}).await.expect("readable");
    let limits = Limits { max_size: Some(1 << 40), max_age: Some(30 * DAY), grace: GRACE };
    let stop = CancellationToken::new();
    // The large NAR has no referrers and has not been used for long.
    let report =
        cache.collector().collect(&limits, now, &stop, |_| {}).await.expect("the request succeeds");
    assert_eq!((report.paths, report.shared, report.unowned), (0, 1, 0));
    for key in keys.iter().filter(|key| **key != dir::nar(2)) {
        assert_eq!(dir::used(dir, key), now - 3 * DAY, "{key}");
    }
}

#[tokio::test]
async fn a_use_is_recorded_once_an_hour_and_changes_nothing_else() {
    let scratch = Scratch::new();
    check_that_uses_are_recorded(scratch.path()).await;
}

#[tokio::test]
async fn a_use_is_recorded_on_a_noatime_file_system() {
    let disk = Disk::new("size=8m,noatime");
    check_that_uses_are_recorded(disk.path()).await;
    let disk = Disk::new("size=8m,noatime");
    check_that_looking_leaves_no_trace(disk.path()).await;
}

#[tokio::test]
async fn a_use_is_recorded_on_a_relatime_file_system() {
    let disk = Disk::new("size=8m,relatime");
    check_that_uses_are_recorded(disk.path()).await;
    let disk = Disk::new("size=8m,relatime");
    check_that_looking_leaves_no_trace(disk.path()).await;
}

#[tokio::test]
async fn a_scan_does_not_count_as_use() {
    let disk = Disk::new("size=8m,strictatime");
    check_that_looking_leaves_no_trace(disk.path()).await;
}

#[tokio::test]
async fn a_response_from_memory_counts_as_use() {
    let scratch = Scratch::new();
    // Every use is recorded, before the response.
    let cache = TestCache::over(scratch.path(), Duration::ZERO);
    let (key, now) = (dir::narinfo(1), dir::now());
    dir::put_path(scratch.path(), 1, &[], now - 2 * HOUR);
    for method in [Method::GET, Method::HEAD] {
        let text = ask(&cache, &Method::GET, &key).await.is(200).text();
        // The narinfo in memory is used until the file is checked again.
        dir::put(scratch.path(), &key, "something else", now - 2 * HOUR);
        let begin = Instant::now();
        let response = ask(&cache, &method, &key).await.is(200);
        if begin.elapsed() < Duration::from_secs(1) && method == Method::GET {
            assert_eq!(response.text(), text, "the narinfo was not served from memory");
        }
        assert!(is_recorded(scratch.path(), &key, now), "{method}");
    }
}

#[tokio::test]
async fn a_use_from_memory_is_recorded_once_an_hour() {
    let scratch = Scratch::new();
    let (key, now) = (dir::narinfo(1), dir::now());
    loop {
        dir::put_path(scratch.path(), 1, &[], now - 13 * HOUR);
        let cache = TestCache::over(scratch.path(), GRACE);
        let begin = Instant::now();
        ask(&cache, &Method::GET, &key).await.is(200);
        assert!(is_recorded(scratch.path(), &key, now));
        let earlier = now - 12 * HOUR;
        dir::set_times(scratch.path(), &key, FileTimes::new().set_accessed(earlier));
        ask(&cache, &Method::GET, &key).await.is(200);
        settle(&cache).await;
        // After three seconds the file is checked again, and its content is used.
        if begin.elapsed() < Duration::from_secs(2) {
            assert_eq!(dir::used(scratch.path(), &key), earlier, "recorded twice");
            break;
        }
    }
}

#[tokio::test]
async fn a_removed_narinfo_in_memory_is_absent_when_its_use_is_recorded() {
    let scratch = Scratch::new();
    let cache = TestCache::over(scratch.path(), Duration::ZERO);
    let key = dir::narinfo(1);
    for method in [Method::GET, Method::HEAD] {
        dir::put_path(scratch.path(), 1, &[], dir::now() - DAY);
        ask(&cache, &Method::GET, &key).await.is(200);
        // As another process would.
        fs::remove_file(scratch.join(&key)).expect("present");
        ask(&cache, &method, &key).await.is(404);
        ask(&cache, &method, &key).await.is(404);
    }
}

#[tokio::test]
async fn an_upload_counts_as_use_of_its_references() {
    let scratch = Scratch::new();
    let cache = TestCache::over(scratch.path(), GRACE);
    let now = dir::now();
    dir::put_path(scratch.path(), 1, &[], now - 13 * HOUR);
    dir::put_path(scratch.path(), 2, &[], now - 2 * HOUR);
    let mut sample = sample(9, b"contents");
    let references = format!("References: {} {}", dir::store_path(1), dir::store_path(2));
    sample.narinfo = sample.narinfo.replace("References: ", &references);
    let (nar, narinfo) = (&sample.nar_path[1..], &sample.narinfo_path[1..]);
    let dir = scratch.path();
    dir::put(dir, nar, &sample.nar, now - 13 * HOUR);

    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
    for key in [nar, narinfo, &dir::narinfo(1)] {
        assert!(is_recorded(dir, key, now), "{key}");
    }
    until("the use of the other reference is recorded", || is_recorded(dir, &dir::narinfo(2), now))
        .await;

    // The same upload again stores nothing, but counts as a use.
    for key in [nar, narinfo] {
        dir::set_used(dir, key, now - 13 * HOUR);
    }
    cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(200);
    for key in [nar, narinfo] {
        assert!(is_recorded(dir, key, now), "{key} was uploaded again");
    }
    dir::set_used(dir, nar, now - 13 * HOUR);
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(200);
    assert!(is_recorded(dir, nar, now), "{nar} was uploaded again");
}
