//! The server or a client stalls during a read: the object arrives completely or the read fails, and nothing counts
//! as damaged.

use std::time::{Duration, Instant};

use nix_stored::nix::Compression;

use super::commands::run;
use super::place::{Place, Site, on_every_server, over, put, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::{Fate, Faults};
use crate::support::s3_garage::Garage;
use crate::support::wire::Wire;

const MIB: usize = 1 << 20;

/// Longer than a request to the server is tried again, and shorter than the server may be silent.
const SHORT_STALL: Duration = Duration::from_secs(22);

/// Longer than the server may be silent.
const LONG_STALL: Duration = Duration::from_secs(35);

on_every_server! {
    a_nar_whose_reading_stalls_is_not_damaged
    a_nar_is_sent_completely_over_a_slow_connection_and_to_a_pausing_client
}

fn is_get_of(head: &str, sample: &Sample) -> bool {
    head.starts_with("GET ") && head.contains(&sample.nar_path)
}

#[track_caller]
fn assert_nothing_is_quarantined(bucket: &Bucket, sample: &Sample) {
    let keys = bucket.all_keys();
    assert!(keys.contains(&sample.nar_path[1..].to_owned()), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("quarantine")), "{keys:?}");
}

/// The first answer with the NAR stalls for this time.
fn stall_once(faults: &Faults, sample: &Sample, time: Duration) {
    let (sample, mut stalled) = (sample.clone(), false);
    faults.on(move |head| {
        let stalls = is_get_of(head, &sample) && !std::mem::replace(&mut stalled, true);
        if stalls { Fate::Stalls(MIB as u64, time) } else { Fate::Passes }
    });
}

fn a_nar_whose_reading_stalls_is_not_damaged(place: &Place) {
    let noise = |number: u8| sample(number, &Noise::new(number.into()).bytes(3 * MIB));
    let plain = noise(1);
    // A decoder meets the end of what came.
    let packed = noise(2).packed(Compression::Xz);
    std::thread::scope(|scope| {
        for one in [&plain, &packed] {
            for time in [SHORT_STALL, LONG_STALL] {
                // Read again for its narinfo, which has come after the NAR.
                scope.spawn(move || {
                    let site = Site::at(place);
                    site.bucket.put(&one.nar_path[1..], &one.nar);
                    stall_once(&site.faults, one, time);
                    let begun = Instant::now();
                    let answer = put(&site.daemon, &one.narinfo_path, one.narinfo.as_bytes());
                    assert!(begun.elapsed() > SHORT_STALL, "it did not stall");
                    assert_eq!(answer.status, 201, "{time:?}: {}", answer.text());
                    assert_nothing_is_quarantined(&site.bucket, one);
                });
                scope.spawn(move || {
                    let bucket = place.bucket();
                    bucket.put(&one.nar_path[1..], &one.nar);
                    bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
                    let faults = Faults::before(bucket.address());
                    stall_once(&faults, one, time);
                    let through = bucket.through(faults.address());
                    let begun = Instant::now();
                    run(&through, &["verify", "--deep", "--repair"]).is(0);
                    assert!(begun.elapsed() > SHORT_STALL, "it did not stall");
                    assert_nothing_is_quarantined(&bucket, one);
                });
            }
        }
    });
}

/// Stops the server when the NAR is being read for `action`, and continues it after this time.
fn while_it_is_stopped<T: Send>(
    garage: &Garage,
    faults: &Faults,
    one: &Sample,
    time: Duration,
    action: impl FnOnce() -> T + Send,
) -> T {
    faults.forget();
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let acting = scope.spawn(action);
        while !faults.asked().iter().any(|line| is_get_of(line, one)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "the NAR is not read");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        garage.pause(0);
        std::thread::sleep(time);
        assert!(!acting.is_finished(), "it was read before the server was stopped");
        garage.resume(0);
        acting.join().expect("it does not panic")
    })
}

#[test]
#[ignore = "needs Garage: tests/run --garage"]
fn a_nar_that_is_read_while_garage_is_stopped_is_not_damaged() {
    let garage = Garage::start(1);
    let bucket = garage.bucket("cache");
    let faults = Faults::before(bucket.address());
    let through = bucket.through(faults.address());
    let daemon = over(&through).start();
    // So slow, and so large, that most of it is not yet read when the server is stopped.
    let ones = [
        sample(1, &Noise::new(1).bytes(32 * MIB)),
        sample(2, &Noise::new(2).bytes(32 * MIB)).packed(Compression::Zstd),
    ];
    for (one, time) in ones.iter().zip([SHORT_STALL, LONG_STALL]) {
        bucket.put(&one.nar_path[1..], &one.nar);
        let wanted = one.clone();
        faults.on(move |head| match is_get_of(head, &wanted) {
            true => Fate::Slow(16 * MIB as u64),
            false => Fate::Passes,
        });
        let answer = while_it_is_stopped(&garage, &faults, one, time, || {
            put(&daemon, &one.narinfo_path, one.narinfo.as_bytes())
        });
        assert_nothing_is_quarantined(&bucket, one);
        // Nothing else is wrong with it than that it could not be read in time.
        if answer.status != 201 {
            assert!((502..=504).contains(&answer.status), "{} {}", answer.head, answer.text());
            bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
        }
        while_it_is_stopped(&garage, &faults, one, time, || {
            run(&through, &["verify", "--deep", "--repair"])
        });
        assert_nothing_is_quarantined(&bucket, one);
        faults.all(Fate::Passes);
        run(&through, &["verify", "--deep", "--repair"]).is(0);
        assert_nothing_is_quarantined(&bucket, one);
    }
}

/// Begins to read a NAR.
fn begin(daemon: &Daemon, sample: &Sample) -> Wire {
    let mut wire = Wire::to(daemon);
    let path = &sample.nar_path;
    wire.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    wire
}

fn a_nar_is_sent_completely_over_a_slow_connection_and_to_a_pausing_client(place: &Place) {
    let one = sample(1, &Noise::new(1).bytes(40 * MIB));
    let site = Site::at(place);
    upload(&site.daemon, &one);
    let slow = Faults::before(site.bucket.address());
    slow.all(Fate::Slow(MIB as u64));
    let behind_a_slow_line = over(&site.bucket.through(slow.address())).start();
    std::thread::scope(|scope| {
        let (one, site) = (&one, &site);
        scope.spawn(move || {
            let mut wire = begin(&site.daemon, one);
            assert_eq!(wire.head().status, 200);
            wire.wait_for(MIB);
            std::thread::sleep(LONG_STALL);
            assert!(wire.rest() == one.nar, "other bytes after the pause");
        });
        // The line to the client is slow.
        scope.spawn(move || {
            let mut wire = begin(&site.daemon, one);
            assert_eq!(wire.head().status, 200);
            for count in 1..=40 {
                wire.wait_for(count * MIB);
                std::thread::sleep(Duration::from_secs(1));
            }
            assert!(wire.rest() == one.nar, "other bytes at a slow client");
        });
        // The line to the server is.
        scope.spawn(|| {
            let begun = Instant::now();
            let mut wire = begin(&behind_a_slow_line, one);
            assert_eq!(wire.head().status, 200);
            assert!(wire.rest() == one.nar, "other bytes over a slow line");
            assert!(begun.elapsed() > LONG_STALL, "the line was not slow");
        });
    });
}
