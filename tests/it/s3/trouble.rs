//! The server fails. Clients get an error in time, and never a 404.

use std::time::{Duration, Instant};

use super::place::{Place, Site, assert_nothing_is_false, get, head, on_every_server, put};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::Fate;
use crate::support::wire::Received;

const BUSY: Fate = Fate::Error(503, "SlowDown");
const FAILED: Fate = Fate::Error(500, "InternalError");
const FORBIDDEN: Fate = Fate::Error(403, "AccessDenied");
const NO_BUCKET: Fate = Fate::Error(404, "NoSuchBucket");

/// A client need not wait longer for an answer, whatever is the matter.
const IN_TIME: Duration = Duration::from_secs(75);

on_every_server! {
    a_broken_read_from_the_server_is_resumed
    a_download_that_cannot_be_resumed_is_aborted
}

#[track_caller]
fn assert_trouble(answer: &Received, expected: &[u16]) {
    assert!(expected.contains(&answer.status), "{} {}", answer.head, answer.text());
    let seconds = answer.header("retry-after").parse::<u32>();
    assert!(seconds.is_ok_and(|seconds| seconds > 0), "{}", answer.head);
    assert_eq!(answer.header("cache-control"), "no-store", "{}", answer.head);
    let text = answer.text();
    assert!(!text.contains("127.0.0.1") && !text.contains("Amz"), "{text}");
}

/// While every request has this fate, everything that needs the bucket is answered so; and when the
/// trouble is over, everything is there.
#[track_caller]
fn while_it_lasts(fate: Fate, reads: &[u16]) {
    let site = Site::new();
    let (one, two) = (sample(1, &[1; 100_000]), sample(2, &Noise::new(2).bytes(6 << 20)));
    let new = sample(3, &[3; 100_000]);
    site.plant(&one);
    site.plant(&two);
    site.faults.all(fate);
    let daemon = &site.daemon;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for path in [&one.narinfo_path, &one.nar_path, &two.narinfo_path, &two.nar_path] {
            scope.spawn(|| assert_trouble(&get(daemon, path), reads));
            scope.spawn(|| assert_trouble(&head(daemon, path), reads));
        }
        scope.spawn(|| assert_trouble(&put(daemon, &new.nar_path, &new.nar), &[502, 503, 504]));
        let large = sample(4, &Noise::new(4).bytes(12 << 20));
        scope.spawn(move || {
            assert_trouble(&put(daemon, &large.nar_path, &large.nar), &[502, 503, 504]);
        });
    });
    assert!(begun.elapsed() < IN_TIME, "it took {:?}", begun.elapsed());

    site.faults.all(Fate::Passes);
    site.faults.break_off();
    for sample in [&one, &two] {
        let answer = get(daemon, &sample.narinfo_path);
        assert_eq!((answer.status, answer.text()), (200, sample.narinfo.clone()));
        assert!(get(daemon, &sample.nar_path).body == sample.nar, "other bytes");
    }
    assert_eq!(get(daemon, &new.nar_path).status, 404);
    for (path, body) in [(&new.nar_path, &*new.nar), (&new.narinfo_path, new.narinfo.as_bytes())] {
        assert_eq!(put(daemon, path, body).status, 201, "{path}");
    }
    assert_eq!(assert_nothing_is_false(&site.bucket), 3);
}

#[test]
fn a_busy_server_is_503() {
    while_it_lasts(BUSY, &[503]);
}

#[test]
fn a_server_that_fails_is_a_bad_gateway() {
    while_it_lasts(FAILED, &[502]);
}

#[test]
fn a_server_that_answers_403_is_a_bad_gateway() {
    while_it_lasts(FORBIDDEN, &[502]);
}

#[test]
fn a_missing_bucket_is_not_served_as_an_empty_cache() {
    while_it_lasts(NO_BUCKET, &[502]);
}

#[test]
fn a_server_that_does_not_answer_is_reported_in_time() {
    while_it_lasts(Fate::Hangs, &[504]);
}

#[test]
fn a_server_that_closes_the_connection_is_a_bad_gateway() {
    while_it_lasts(Fate::Refused, &[502]);
}

#[test]
fn an_outage_of_the_server_loses_nothing() {
    let mut site = Site::new();
    let (one, two) = (sample(1, &[1; 1000]), sample(2, &[2; 1000]));
    site.plant(&one);
    site.server.stop();
    site.faults.break_off();
    assert_trouble(&get(&site.daemon, &one.narinfo_path), &[502, 504]);
    site.server.start_again();
    assert_eq!(get(&site.daemon, &one.narinfo_path).text(), one.narinfo);
    super::place::upload(&site.daemon, &two);
    assert_eq!(assert_nothing_is_false(&site.bucket), 2);
}

/// The status of `/health`, and its reason.
fn health(daemon: &Daemon) -> (u16, String) {
    let answer = get(daemon, "/health");
    (answer.status, answer.text())
}

#[test]
fn the_daemon_is_unhealthy_while_the_server_returns_errors() {
    let site = Site::new();
    assert_eq!(health(&site.daemon).0, 200);
    for (fate, reason) in [(FORBIDDEN, "AccessDenied"), (NO_BUCKET, "NoSuchBucket")] {
        site.faults.all(fate);
        site.daemon.wait_until("it is seen", || health(&site.daemon).0 == 503);
        let (_, told) = health(&site.daemon);
        assert!(told.contains("unavailable") && told.contains(reason), "{told}");
        site.faults.all(Fate::Passes);
        site.daemon.wait_until("it is over", || health(&site.daemon).0 == 200);
    }
}

#[test]
fn a_short_outage_of_the_server_causes_no_error() {
    let site = Site::new();
    let one = sample(1, &Noise::new(1).bytes(300_000));
    site.plant(&one);
    for fate in [BUSY, FAILED, Fate::Refused, Fate::Cut(0)] {
        site.faults.next(2, fate);
        assert!(get(&site.daemon, &one.nar_path).body == one.nar, "{fate:?}");
        site.faults.next(2, fate);
        assert_eq!(head(&site.daemon, &one.nar_path).status, 200, "{fate:?}");
        site.faults.next(2, fate);
        let new = sample(2, format!("{fate:?}").as_bytes());
        assert_eq!(put(&site.daemon, &new.nar_path, &new.nar).status, 201, "{fate:?}");
    }
}

fn a_broken_read_from_the_server_is_resumed(place: &Place) {
    let site = Site::at(place);
    let one = sample(1, &Noise::new(1).bytes(9 << 20));
    site.plant(&one);
    site.faults.next(2, Fate::Cut(1 << 20));
    let answer = get(&site.daemon, &one.nar_path);
    assert_eq!(answer.status, 200);
    assert!(answer.body == one.nar, "{} bytes", answer.body.len());
}

fn a_download_that_cannot_be_resumed_is_aborted(place: &Place) {
    let site = Site::at(place);
    let one = sample(1, &Noise::new(1).bytes(9 << 20));
    site.plant(&one);
    // The first part comes, and no other.
    let mut first = true;
    site.faults.on(move |_| match std::mem::take(&mut first) {
        true => Fate::Cut(1 << 20),
        false => FAILED,
    });
    let answer = get(&site.daemon, &one.nar_path);
    assert_eq!(answer.header("content-length"), one.nar.len().to_string());
    assert_eq!(answer.header("accept-ranges"), "bytes", "a client goes on where it was");
    assert!(answer.body.len() < one.nar.len(), "{} bytes", answer.body.len());
    assert!(one.nar.starts_with(&answer.body), "other bytes");
}

/// How many parts are refused.
fn refuse_parts(site: &Site, mut count: usize, fate: Fate) {
    site.faults.on(move |head| {
        let is_part = head.starts_with("PUT ") && head.contains("partNumber=");
        if is_part && count > 0 {
            count -= 1;
            return fate;
        }
        Fate::Passes
    });
}

#[test]
fn a_part_that_was_refused_is_sent_again() {
    let site = Site::new();
    for (number, fate) in [(1, BUSY), (2, FAILED), (3, Fate::Refused), (4, Fate::Cut(0))] {
        let large = sample(number, &Noise::new(number.into()).bytes(17 << 20));
        refuse_parts(&site, 3, fate);
        let answer = put(&site.daemon, &large.nar_path, &large.nar);
        assert_eq!(answer.status, 201, "{fate:?}: {}", answer.text());
        assert!(site.bucket.get(&large.nar_path[1..]).as_ref() == Some(&large.nar), "{fate:?}");
    }
    assert_eq!(site.server.unfinished(), 0);
}

#[test]
fn an_upload_whose_parts_are_refused_leaves_nothing() {
    let site = Site::new();
    let large = sample(1, &Noise::new(1).bytes(17 << 20));
    refuse_parts(&site, usize::MAX, FAILED);
    assert_trouble(&put(&site.daemon, &large.nar_path, &large.nar), &[502]);
    site.daemon.wait_until("the parts are gone", || site.server.unfinished() == 0);
    assert_eq!(get(&site.daemon, &large.nar_path).status, 404);
    site.faults.all(Fate::Passes);
    assert_eq!(put(&site.daemon, &large.nar_path, &large.nar).status, 201);
}

#[test]
fn a_lost_response_to_the_completion_leaves_the_whole_object_or_none() {
    let site = Site::new();
    let large = sample(1, &Noise::new(1).bytes(12 << 20));
    let mut lost = false;
    site.faults.on(move |head| {
        let is_last = head.starts_with("POST ") && head.contains("uploadId=");
        if is_last && !std::mem::replace(&mut lost, true) { Fate::Cut(0) } else { Fate::Passes }
    });
    let answer = put(&site.daemon, &large.nar_path, &large.nar);
    let there = get(&site.daemon, &large.nar_path);
    match answer.status {
        201 => assert_eq!(there.status, 200),
        _ => assert_trouble(&answer, &[502]),
    }
    assert!(there.status == 404 || there.body == large.nar, "{}", there.head);
    super::place::upload(&site.daemon, &large);
    assert_eq!(assert_nothing_is_false(&site.bucket), 1);
}

#[test]
fn cached_narinfos_are_served_without_the_server_for_a_short_time() {
    let site = Site::new();
    let one = sample(1, b"one");
    site.plant(&one);
    assert_eq!(get(&site.daemon, &one.narinfo_path).status, 200);
    site.faults.forget();
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(&site.daemon, &one.narinfo_path).text(), one.narinfo);
    }
    let asked = site.faults.asked().iter().filter(|line| line.contains("narinfo")).count();
    // Once a second at most, on a machine of any speed.
    assert!(asked as u64 <= 1 + begun.elapsed().as_secs(), "{asked} times");
}

/// Puts a path into the bucket as if that had been so long ago.
fn plant_old(site: &Site, sample: &Sample, age: Duration) {
    site.plant(sample);
    let at = std::time::SystemTime::now() - age;
    for path in [&sample.nar_path, &sample.narinfo_path] {
        let file = site.server.folder(&site.bucket).join(&path[1..]);
        let file = std::fs::File::options().write(true).open(file).expect("it is a file");
        file.set_modified(at).expect("its time can be set");
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_daemon_that_cannot_record_uses_reports_it_and_refuses_dependent_uploads() {
    let site = Site::new();
    let old = sample(1, b"old");
    plant_old(&site, &old, 3 * DAY);
    let mut new = sample(2, b"new");
    let name = old.store_path.trim_start_matches("/nix/store/");
    new.narinfo = new.narinfo.replace("References: ", &format!("References: {name}"));
    assert_eq!(put(&site.daemon, &new.nar_path, &new.nar).status, 201);
    assert_eq!(get(&site.daemon, "/health").status, 200);
    site.faults.on(|head| match head.starts_with("PUT ") && head.contains("/.nix-stored/uses/") {
        true => FORBIDDEN,
        false => Fate::Passes,
    });
    // It is served, as who may only read serves it.
    assert_eq!(get(&site.daemon, &old.narinfo_path).status, 200);
    let refused = put(&site.daemon, &new.narinfo_path, new.narinfo.as_bytes());
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert_eq!(get(&site.daemon, &new.narinfo_path).status, 404);
    let begun = Instant::now();
    let health = loop {
        let health = get(&site.daemon, "/health");
        if health.status == 503 || begun.elapsed() > IN_TIME {
            break health;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(health.status, 503, "{}", health.text());
    assert!(health.text().contains("a use could not be recorded"), "{}", health.text());
    assert!(health.text().contains("not protected from collection"), "{}", health.text());
    site.faults.all(Fate::Passes);
    let taken = put(&site.daemon, &new.narinfo_path, new.narinfo.as_bytes());
    assert_eq!(taken.status, 201, "{}", taken.text());
}

#[test]
fn uses_are_recorded_before_the_daemon_exits() {
    let site = Site::new();
    let old = sample(1, b"old");
    plant_old(&site, &old, DAY / 8);
    // Not for so long that anybody waits until it is recorded.
    assert_eq!(get(&site.daemon, &old.narinfo_path).status, 200);
    let uses = |bucket: &Bucket| {
        let keys = bucket.all_keys().into_iter().filter(|key| key.contains("/uses/"));
        keys.filter_map(|key| bucket.get(&key))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .collect::<String>()
    };
    assert_eq!(uses(&site.bucket), "");
    let Site { daemon, bucket, faults: _faults, server: _server } = site;
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert!(uses(&bucket).contains(&old.narinfo_path[1..]), "{}", uses(&bucket));
}
