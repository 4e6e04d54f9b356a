//! The defects of the earlier Go daemon of the same name, one test each, named after the defect.
//! Missing features are tested where the feature is.

use axum::body::Body;
use http::Method;

use crate::support::cache::{SlowBody, TestCache, request};
use crate::support::daemon::Daemon;
use crate::support::objects::{ONE_OF_EACH, sample};
use crate::support::wire::Wire;

const BOTH: &[(&str, &str)] = &[
    ("USER_READ", "reader"),
    ("USER_READ_PASS", "r"),
    ("USER_WRITE", "writer"),
    ("USER_WRITE_PASS", "w"),
];

/// `reader:r`, `writer:w` and `:` in base 64.
const READER: &str = "Basic cmVhZGVyOnI=";
const WRITER: &str = "Basic d3JpdGVyOnc=";
const EMPTY: &str = "Basic Og==";

async fn put_as(cache: &TestCache, path: &str, who: &str) -> u16 {
    let mut request = request(Method::PUT, path, Body::from("x"));
    request.headers_mut().insert("authorization", who.parse().expect("a value"));
    cache.send(request).await.status.as_u16()
}

#[tokio::test]
async fn d01_the_read_user_could_upload_nars() {
    let cache = TestCache::configured(BOTH, true);
    assert_eq!(put_as(&cache, ONE_OF_EACH[3], READER).await, 403);
    assert_eq!(put_as(&cache, ONE_OF_EACH[5], WRITER).await, 201);
}

#[tokio::test]
async fn d02_empty_credentials_passed_when_one_user_was_unset() {
    for one in [&BOTH[..2], &BOTH[2..]] {
        let cache = TestCache::configured(one, true);
        assert!([401, 403].contains(&put_as(&cache, ONE_OF_EACH[3], EMPTY).await));
    }
    let cache = TestCache::configured(&BOTH[..2], true);
    cache.get_with("/nix-cache-info", &[("authorization", EMPTY)]).await.is(401);
}

#[tokio::test]
async fn d03_a_failed_login_was_a_500_without_a_challenge() {
    let cache = TestCache::configured(BOTH, true);
    for headers in [&[][..], &[("authorization", "nonsense")], &[("authorization", EMPTY)]] {
        let response = cache.get_with("/nix-cache-info", headers).await.is(401);
        assert!(response.header("www-authenticate").starts_with("Basic "));
    }
}

#[tokio::test]
async fn d04_public_read_with_protected_write_was_impossible() {
    let cache = TestCache::configured(&BOTH[2..], false);
    cache.get("/nix-cache-info").await.is(200);
    cache.put(ONE_OF_EACH[5], "x").await.is(401);
    assert_eq!(put_as(&cache, ONE_OF_EACH[5], WRITER).await, 201);
}

#[test]
fn d05_passwords_were_logged_at_start() {
    let daemon = Daemon::builder()
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_USER_READ_PASS", "hunter2-read")
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "hunter2-write")
        .env("NIX_STORED_LOG_LEVEL", "trace")
        .start();
    let mut wire = Wire::to(&daemon);
    wire.send("GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cmVhZGVyOmh1bnRlcjItcmVhZA==\r\n\r\n");
    assert_eq!(wire.response().status, 200);
    let log = daemon.stop().1;
    assert!(log.contains("nix-cache-info"), "{log}");
    assert!(!log.contains("hunter2") && !log.contains("cmVhZGVyOmh1bnRlcjItcmVhZA"), "{log}");
}

#[tokio::test]
async fn d06_cache_info_was_json() {
    let response = TestCache::new().get("/nix-cache-info").await.is(200);
    assert_eq!(response.header("content-type"), "text/x-nix-cache-info");
    assert_eq!(response.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
}

#[tokio::test]
async fn d07_encoded_dots_and_slashes_left_the_directory() {
    let cache = TestCache::new();
    let outside = cache.dir().join("../outside.narinfo");
    std::fs::write(&outside, "secret").expect("writable");
    for path in [
        "/%2e%2e%2foutside.narinfo",
        "/..%2Foutside.narinfo",
        "/nar/%2e%2e%2f%2e%2e%2foutside.nar.xz",
    ] {
        cache.get(path).await.is(404);
        cache.head(path).await.is(404);
        cache.put(path, "overwritten").await.is(400);
    }
    assert_eq!(std::fs::read_to_string(&outside).expect("present"), "secret");
}

#[tokio::test]
async fn d08_a_reader_saw_a_partial_object_during_an_upload() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 200_000]);
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    let (body, upload) = SlowBody::new();
    let upload = cache.put_in_the_background(&sample.nar_path, upload);
    body.send(&sample.nar[..100_000]).await;
    assert_eq!(cache.get(&sample.nar_path).await.is(200).body, sample.nar);
    body.disconnect().await;
    assert_eq!(upload.await.expect("a response arrives"), 400);
    assert_eq!(cache.get(&sample.nar_path).await.is(200).body, sample.nar);
}

#[test]
fn d09_a_broken_upload_left_a_nar_that_was_never_repaired() {
    let daemon = Daemon::start();
    let sample = sample(1, &[1; 200_000]);
    let mut wire = Wire::to(&daemon);
    let length = sample.nar.len();
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n",
        sample.nar_path
    ));
    wire.send_bytes(&sample.nar[..100_000]);
    drop(wire);
    daemon.wait_for_log("cut short");
    assert_eq!(Wire::to(&daemon).request("HEAD", &sample.nar_path, b"").status, 404);
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    assert_eq!(Wire::to(&daemon).request("GET", &sample.nar_path, b"").body, sample.nar);
}

#[tokio::test]
async fn d10_uploads_to_one_name_were_mixed_into_one_file() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 200_000]);
    let mut uploads = Vec::new();
    for _ in 0..4 {
        let (body, upload) = SlowBody::new();
        uploads.push((body, cache.put_in_the_background(&sample.nar_path, upload)));
    }
    for part in sample.nar.chunks(30_000) {
        for (body, _) in &uploads {
            body.send(part).await;
        }
    }
    let mut statuses = Vec::new();
    for (body, upload) in uploads {
        drop(body);
        statuses.push(upload.await.expect("a response arrives"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 201], "one was the first");
    assert_eq!(cache.get(&sample.nar_path).await.body, sample.nar);
    assert_eq!(cache.staged(), 0);
}

#[tokio::test]
async fn d11_any_body_was_accepted_as_a_nar_or_a_narinfo() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    cache.put(&sample.nar_path, "not it").await.is(422);
    cache.put(&sample.narinfo_path, "not it\n").await.is(400);
    assert!(cache.objects().is_empty());
}

#[test]
fn d12_stalled_uploads_froze_every_download() {
    let daemon = Daemon::start();
    let sample = sample(1, b"x");
    let stalled: Vec<Wire> = (0..60)
        .map(|_| {
            let mut wire = Wire::to(&daemon);
            wire.send(&format!(
                "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999999\r\n\r\n",
                sample.nar_path
            ));
            assert_eq!(wire.head().status, 100);
            wire
        })
        .collect();
    assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    assert_eq!(Wire::to(&daemon).request("GET", &sample.nar_path, b"").body, sample.nar);
    drop(stalled);
}

#[tokio::test]
async fn d13_cancelled_clients_moved_the_limit_until_uploads_failed() {
    let cache = TestCache::new();
    let sample = sample(1, &[1; 10_000]);
    for _ in 0..100 {
        let (body, upload) = SlowBody::new();
        let upload = cache.put_in_the_background(&sample.nar_path, upload);
        body.send(&sample.nar[..10]).await;
        upload.abort();
    }
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
}

#[test]
fn d14_open_files_and_downloads_had_no_bound() {
    // A client that does not read its response costs a socket and an open file, but no thread. Both
    // are freed when it disconnects.
    let daemon = Daemon::start();
    let sample = sample(1, &[1; 20_000_000]);
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    let before = daemon.open_files();
    let unread: Vec<Wire> = (0..100)
        .map(|_| {
            let mut wire = Wire::to(&daemon);
            wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", sample.nar_path));
            assert_eq!(wire.head().status, 200);
            wire
        })
        .collect();
    assert_eq!(Wire::to(&daemon).request("GET", &sample.nar_path, b"").body, sample.nar);
    assert!(daemon.open_files() >= before + 100);
    drop(unread);
    daemon.wait_until("the files are closed", || daemon.open_files() <= before);
}

#[tokio::test]
async fn d15_nars_without_an_extension_were_refused() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    assert!(sample.nar_path.ends_with(".nar"));
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    assert_eq!(cache.get(&sample.nar_path).await.is(200).body, sample.nar);
}

#[tokio::test]
async fn d16_listings_logs_realisations_and_debug_info_were_refused() {
    let cache = TestCache::new();
    for path in [&ONE_OF_EACH[2..3], &ONE_OF_EACH[5..]].concat() {
        cache.get(path).await.is(404);
        cache.put(path, "{}").await.is(201);
        cache.get(path).await.is(200);
    }
}

#[tokio::test]
async fn d17_a_compressed_narinfo_was_stored_compressed() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    let mut upload = request(Method::PUT, &sample.narinfo_path, Body::from("\u{1f}garbage"));
    upload.headers_mut().insert("content-encoding", "x-unknown".parse().expect("a value"));
    cache.send(upload).await.is(415);
    cache.get(&sample.narinfo_path).await.is(404);
}

#[tokio::test]
async fn d18_there_were_no_ranges_validators_or_lengths() {
    let cache = TestCache::new();
    let sample = sample(1, b"x");
    cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    let response = cache.head(&sample.nar_path).await.is(200);
    for header in ["accept-ranges", "etag", "last-modified", "cache-control", "content-length"] {
        assert!(!response.header(header).is_empty(), "{header}");
    }
    cache.get_with(&sample.nar_path, &[("range", "bytes=1-")]).await.is(206);
    cache.head("/nix-cache-info").await.is(200);
}

#[test]
fn d19_an_error_in_the_middle_was_appended_to_the_nar() {
    let daemon = Daemon::start();
    let sample = sample(1, &[b'n'; 30_000_000]);
    assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
    let mut wire = Wire::to(&daemon);
    wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", sample.nar_path));
    assert_eq!(wire.head().status, 200);
    // The client has read nothing yet, so most of the file is not sent when it is truncated.
    let file = std::fs::File::options().write(true).open(daemon.dir().join(&sample.nar_path[1..]));
    file.expect("present").set_len(25_000_000).expect("truncated");
    let got = wire.rest();
    assert!(got.len() < sample.nar.len() && sample.nar.starts_with(&got), "{} bytes", got.len());
    assert_eq!(Wire::to(&daemon).request("GET", "/nix-cache-info", b"").status, 200);
}

#[test]
fn d20_the_stop_cut_transfers_off_and_failed_with_status_0() {
    let status = Daemon::builder().env("NIX_STORED_PATH", "/proc/nowhere").start_fails();
    assert_eq!(status.code, 1);
    assert!(status.log.contains("/proc/nowhere"), "{}", status.log);
    let taken = Daemon::start();
    let address = taken.url().trim_start_matches("http://").to_owned();
    let status = Daemon::builder().env("NIX_STORED_LISTEN_INTERFACE", &address).start_fails();
    assert_eq!(status.code, 1);
    assert!(status.log.contains(&address), "{}", status.log);
    let status = Daemon::builder().env("NIX_STORED_PRIORITY", "x").start_fails();
    assert_eq!(status.code, 64);
}

#[tokio::test]
async fn d22_store_dir_and_priority_were_hard_coded() {
    let cache = TestCache::configured(&[("STORE_DIR", "/my/store"), ("PRIORITY", "50")], true);
    cache.get("/nix-cache-info").await.contains("StoreDir: /my/store").contains("Priority: 50");
}

#[test]
fn d23_descriptors_leaked_on_errors() {
    let daemon = Daemon::start();
    let bad = sample(1, b"x");
    Wire::to(&daemon).request("GET", "/nix-cache-info", b"");
    let before = daemon.open_files();
    for _ in 0..50 {
        assert_eq!(Wire::to(&daemon).request("PUT", &bad.nar_path, b"wrong").status, 422);
        assert_eq!(Wire::to(&daemon).request("GET", &bad.nar_path, b"").status, 404);
        assert_eq!(Wire::to(&daemon).request("PUT", "/x", b"wrong").status, 400);
    }
    daemon.wait_until("the files are closed", || daemon.open_files() <= before);
}

#[test]
fn d24_there_was_no_licence_and_only_one_platform() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("present");
    assert!(read("LICENSE").contains("MIT"));
    let flake = read("flake.nix");
    assert!(flake.contains("\"x86_64-linux\"") && flake.contains("\"aarch64-linux\""));
}
