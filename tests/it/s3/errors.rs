//! The server fails. Clients get an error in time, and never a 404.

use std::time::{Duration, Instant};

use super::server::{FaultySetup, TestServer, assert_consistent, get, head, on_every_server, put};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::Action;
use crate::support::wire::RawResponse;

const BUSY: Action = Action::Error(503, "SlowDown");
const FAILED: Action = Action::Error(500, "InternalError");
const FORBIDDEN: Action = Action::Error(403, "AccessDenied");
const NO_BUCKET: Action = Action::Error(404, "NoSuchBucket");

/// The limit for every response.
const IN_TIME: Duration = Duration::from_secs(75);

on_every_server! {
    a_broken_read_from_the_server_is_resumed
    a_download_that_cannot_be_resumed_is_aborted
}

#[track_caller]
fn assert_failure(response: &RawResponse, expected: &[u16]) {
    assert!(expected.contains(&response.status), "{} {}", response.head, response.text());
    let seconds = response.header("retry-after").parse::<u32>();
    assert!(seconds.is_ok_and(|seconds| seconds > 0), "{}", response.head);
    assert_eq!(response.header("cache-control"), "no-store", "{}", response.head);
    let text = response.text();
    assert!(!text.contains("127.0.0.1") && !text.contains("Amz"), "{text}");
}

/// Checks that requests that need the bucket get this response while all requests to the server
/// fail this way, and that everything works afterwards.
#[track_caller]
fn check_during_and_after(action: Action, reads: &[u16]) {
    let setup = FaultySetup::new();
    let (one, two) = (sample(1, &[1; 100_000]), sample(2, &Noise::new(2).bytes(6 << 20)));
    let new = sample(3, &[3; 100_000]);
    setup.plant(&one);
    setup.plant(&two);
    setup.faults.all(action);
    let daemon = &setup.daemon;
    let started = Instant::now();
    std::thread::scope(|scope| {
        for path in [&one.narinfo_path, &one.nar_path, &two.narinfo_path, &two.nar_path] {
            scope.spawn(|| assert_failure(&get(daemon, path), reads));
            scope.spawn(|| assert_failure(&head(daemon, path), reads));
        }
        scope.spawn(|| assert_failure(&put(daemon, &new.nar_path, &new.nar), &[502, 503, 504]));
        let large = sample(4, &Noise::new(4).bytes(12 << 20));
        scope.spawn(move || {
            assert_failure(&put(daemon, &large.nar_path, &large.nar), &[502, 503, 504]);
        });
    });
    assert!(started.elapsed() < IN_TIME, "it took {:?}", started.elapsed());

    setup.faults.all(Action::Pass);
    setup.faults.disconnect();
    for sample in [&one, &two] {
        let response = get(daemon, &sample.narinfo_path);
        assert_eq!((response.status, response.text()), (200, sample.narinfo.clone()));
        assert!(get(daemon, &sample.nar_path).body == sample.nar, "other bytes");
    }
    assert_eq!(get(daemon, &new.nar_path).status, 404);
    for (path, body) in [(&new.nar_path, &*new.nar), (&new.narinfo_path, new.narinfo.as_bytes())] {
        assert_eq!(put(daemon, path, body).status, 201, "{path}");
    }
    assert_eq!(assert_consistent(&setup.bucket), 3);
}

#[test]
fn a_busy_server_is_503() {
    check_during_and_after(BUSY, &[503]);
}

#[test]
fn a_server_that_fails_is_a_bad_gateway() {
    check_during_and_after(FAILED, &[502]);
}

#[test]
fn a_server_that_answers_403_is_a_bad_gateway() {
    check_during_and_after(FORBIDDEN, &[502]);
}

#[test]
fn a_missing_bucket_is_not_served_as_an_empty_cache() {
    check_during_and_after(NO_BUCKET, &[502]);
}

#[test]
fn a_server_that_does_not_answer_is_reported_in_time() {
    check_during_and_after(Action::Hang, &[504]);
}

#[test]
fn a_server_that_closes_the_connection_is_a_bad_gateway() {
    check_during_and_after(Action::Refuse, &[502]);
}

#[test]
fn an_outage_of_the_server_loses_nothing() {
    let mut setup = FaultySetup::new();
    let (one, two) = (sample(1, &[1; 1000]), sample(2, &[2; 1000]));
    setup.plant(&one);
    setup.server.stop();
    setup.faults.disconnect();
    assert_failure(&get(&setup.daemon, &one.narinfo_path), &[502, 504]);
    setup.server.restart();
    assert_eq!(get(&setup.daemon, &one.narinfo_path).text(), one.narinfo);
    super::server::upload(&setup.daemon, &two);
    assert_eq!(assert_consistent(&setup.bucket), 2);
}

/// The status of `/health`, and its reason.
fn health(daemon: &Daemon) -> (u16, String) {
    let response = get(daemon, "/health");
    (response.status, response.text())
}

#[test]
fn the_daemon_is_unhealthy_while_the_server_returns_errors() {
    let setup = FaultySetup::new();
    assert_eq!(health(&setup.daemon).0, 200);
    for (action, reason) in [(FORBIDDEN, "AccessDenied"), (NO_BUCKET, "NoSuchBucket")] {
        setup.faults.all(action);
        setup.daemon.wait_until("the failure is noticed", || health(&setup.daemon).0 == 503);
        let (_, printed) = health(&setup.daemon);
        assert!(printed.contains("unavailable") && printed.contains(reason), "{printed}");
        setup.faults.all(Action::Pass);
        setup.daemon.wait_until("the recovery is noticed", || health(&setup.daemon).0 == 200);
    }
}

#[test]
fn a_short_outage_of_the_server_causes_no_error() {
    let setup = FaultySetup::new();
    let one = sample(1, &Noise::new(1).bytes(300_000));
    setup.plant(&one);
    for action in [BUSY, FAILED, Action::Refuse, Action::Cut(0)] {
        setup.faults.next(2, action);
        assert!(get(&setup.daemon, &one.nar_path).body == one.nar, "{action:?}");
        setup.faults.next(2, action);
        assert_eq!(head(&setup.daemon, &one.nar_path).status, 200, "{action:?}");
        setup.faults.next(2, action);
        let new = sample(2, format!("{action:?}").as_bytes());
        assert_eq!(put(&setup.daemon, &new.nar_path, &new.nar).status, 201, "{action:?}");
    }
}

fn a_broken_read_from_the_server_is_resumed(server: &TestServer) {
    let setup = FaultySetup::at(server);
    let one = sample(1, &Noise::new(1).bytes(9 << 20));
    setup.plant(&one);
    setup.faults.next(2, Action::Cut(1 << 20));
    let response = get(&setup.daemon, &one.nar_path);
    assert_eq!(response.status, 200);
    assert!(response.body == one.nar, "{} bytes", response.body.len());
}

fn a_download_that_cannot_be_resumed_is_aborted(server: &TestServer) {
    let setup = FaultySetup::at(server);
    let one = sample(1, &Noise::new(1).bytes(9 << 20));
    setup.plant(&one);
    // The first request for a part succeeds, and no other.
    let mut first = true;
    setup.faults.on(move |_| match std::mem::take(&mut first) {
        true => Action::Cut(1 << 20),
        false => FAILED,
    });
    let response = get(&setup.daemon, &one.nar_path);
    assert_eq!(response.header("content-length"), one.nar.len().to_string());
    assert_eq!(response.header("accept-ranges"), "bytes", "clients can resume");
    assert!(response.body.len() < one.nar.len(), "{} bytes", response.body.len());
    assert!(one.nar.starts_with(&response.body), "other bytes");
}

/// Refuses this many requests for parts.
fn refuse_parts(setup: &FaultySetup, mut count: usize, action: Action) {
    setup.faults.on(move |head| {
        let is_part = head.starts_with("PUT ") && head.contains("partNumber=");
        if is_part && count > 0 {
            count -= 1;
            return action;
        }
        Action::Pass
    });
}

#[test]
fn a_part_that_was_refused_is_sent_again() {
    let setup = FaultySetup::new();
    for (number, action) in [(1, BUSY), (2, FAILED), (3, Action::Refuse), (4, Action::Cut(0))] {
        let large = sample(number, &Noise::new(number.into()).bytes(17 << 20));
        refuse_parts(&setup, 3, action);
        let response = put(&setup.daemon, &large.nar_path, &large.nar);
        assert_eq!(response.status, 201, "{action:?}: {}", response.text());
        assert!(setup.bucket.get(&large.nar_path[1..]).as_ref() == Some(&large.nar), "{action:?}");
    }
    assert_eq!(setup.server.unfinished(), 0);
}

#[test]
fn an_upload_whose_parts_are_refused_leaves_nothing() {
    let setup = FaultySetup::new();
    let large = sample(1, &Noise::new(1).bytes(17 << 20));
    refuse_parts(&setup, usize::MAX, FAILED);
    assert_failure(&put(&setup.daemon, &large.nar_path, &large.nar), &[502]);
    setup.daemon.wait_until("the parts are removed", || setup.server.unfinished() == 0);
    assert_eq!(get(&setup.daemon, &large.nar_path).status, 404);
    setup.faults.all(Action::Pass);
    assert_eq!(put(&setup.daemon, &large.nar_path, &large.nar).status, 201);
}

#[test]
fn a_lost_response_to_the_completion_leaves_the_whole_object_or_none() {
    let setup = FaultySetup::new();
    let large = sample(1, &Noise::new(1).bytes(12 << 20));
    let mut lost = false;
    setup.faults.on(move |head| {
        let is_last = head.starts_with("POST ") && head.contains("uploadId=");
        if is_last && !std::mem::replace(&mut lost, true) { Action::Cut(0) } else { Action::Pass }
    });
    let response = put(&setup.daemon, &large.nar_path, &large.nar);
    let there = get(&setup.daemon, &large.nar_path);
    match response.status {
        201 => assert_eq!(there.status, 200),
        _ => assert_failure(&response, &[502]),
    }
    assert!(there.status == 404 || there.body == large.nar, "{}", there.head);
    super::server::upload(&setup.daemon, &large);
    assert_eq!(assert_consistent(&setup.bucket), 1);
}

#[test]
fn cached_narinfos_are_served_without_the_server_for_a_short_time() {
    let setup = FaultySetup::new();
    let one = sample(1, b"one");
    setup.plant(&one);
    assert_eq!(get(&setup.daemon, &one.narinfo_path).status, 200);
    setup.faults.clear_requests();
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(&setup.daemon, &one.narinfo_path).text(), one.narinfo);
    }
    let asked = setup.faults.requests().iter().filter(|line| line.contains("narinfo")).count();
    // At most once a second.
    assert!(asked as u64 <= 1 + started.elapsed().as_secs(), "{asked} times");
}

/// Stores a path in the bucket as if it was uploaded that long ago.
fn plant_old(setup: &FaultySetup, sample: &Sample, age: Duration) {
    setup.plant(sample);
    let at = std::time::SystemTime::now() - age;
    for path in [&sample.nar_path, &sample.narinfo_path] {
        let file = setup.server.folder(&setup.bucket).join(&path[1..]);
        let file = std::fs::File::options().write(true).open(file).expect("the object is a file");
        file.set_modified(at).expect("the time is set");
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_daemon_that_cannot_record_uses_reports_it_and_refuses_dependent_uploads() {
    let setup = FaultySetup::new();
    let old = sample(1, b"old");
    plant_old(&setup, &old, 3 * DAY);
    let mut new = sample(2, b"new");
    let name = old.store_path.trim_start_matches("/nix/store/");
    new.narinfo = new.narinfo.replace("References: ", &format!("References: {name}"));
    assert_eq!(put(&setup.daemon, &new.nar_path, &new.nar).status, 201);
    assert_eq!(get(&setup.daemon, "/health").status, 200);
    setup.faults.on(|head| match head.starts_with("PUT ") && head.contains("/.nix-stored/uses/") {
        true => FORBIDDEN,
        false => Action::Pass,
    });
    // The path is served as by a read-only cache.
    assert_eq!(get(&setup.daemon, &old.narinfo_path).status, 200);
    let refused = put(&setup.daemon, &new.narinfo_path, new.narinfo.as_bytes());
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert_eq!(get(&setup.daemon, &new.narinfo_path).status, 404);
    let started = Instant::now();
    let health = loop {
        let health = get(&setup.daemon, "/health");
        if health.status == 503 || started.elapsed() > IN_TIME {
            break health;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(health.status, 503, "{}", health.text());
    assert!(health.text().contains("a use could not be recorded"), "{}", health.text());
    assert!(health.text().contains("not protected from collection"), "{}", health.text());
    setup.faults.all(Action::Pass);
    let taken = put(&setup.daemon, &new.narinfo_path, new.narinfo.as_bytes());
    assert_eq!(taken.status, 201, "{}", taken.text());
}

#[test]
fn uses_are_recorded_before_the_daemon_exits() {
    let setup = FaultySetup::new();
    let old = sample(1, b"old");
    plant_old(&setup, &old, DAY / 8);
    // The use is recent enough that its recording is not awaited.
    assert_eq!(get(&setup.daemon, &old.narinfo_path).status, 200);
    let uses = |bucket: &Bucket| {
        let keys = bucket.all_keys().into_iter().filter(|key| key.contains("/uses/"));
        keys.filter_map(|key| bucket.get(&key))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .collect::<String>()
    };
    assert_eq!(uses(&setup.bucket), "");
    let FaultySetup { daemon, bucket, faults: _faults, server: _server } = setup;
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert!(uses(&bucket).contains(&old.narinfo_path[1..]), "{}", uses(&bucket));
}
