//! The server or a client stalls during a read: the object arrives completely or the read fails, and nothing counts
//! as damaged.

use std::time::{Duration, Instant};

use nix_stored::nix::Compression;

use super::commands::run;
use super::server::{FaultySetup, TestServer, on_every_server, over, put, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::{Action, FaultProxy};
use crate::support::s3_garage::Garage;
use crate::support::wire::Wire;

const MIB: usize = 1 << 20;

/// Longer than the time for retries of a request, and shorter than the read timeout.
const SHORT_STALL: Duration = Duration::from_secs(22);

/// Longer than the read timeout.
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

/// Stalls the first response with the NAR for this time.
fn stall_once(faults: &FaultProxy, sample: &Sample, time: Duration) {
    let (sample, mut stalled) = (sample.clone(), false);
    faults.on(move |head| {
        let stalls = is_get_of(head, &sample) && !std::mem::replace(&mut stalled, true);
        if stalls { Action::Stall(MIB as u64, time) } else { Action::Pass }
    });
}

fn a_nar_whose_reading_stalls_is_not_damaged(server: &TestServer) {
    let noise = |number: u8| sample(number, &Noise::new(number.into()).bytes(3 * MIB));
    let plain = noise(1);
    // A decoder reads the truncated response.
    let packed = noise(2).packed(Compression::Xz);
    std::thread::scope(|scope| {
        for one in [&plain, &packed] {
            for time in [SHORT_STALL, LONG_STALL] {
                // The NAR is read again for its narinfo, which is uploaded later.
                scope.spawn(move || {
                    let setup = FaultySetup::at(server);
                    setup.bucket.put(&one.nar_path[1..], &one.nar);
                    stall_once(&setup.faults, one, time);
                    let started = Instant::now();
                    let response = put(&setup.daemon, &one.narinfo_path, one.narinfo.as_bytes());
                    assert!(started.elapsed() > SHORT_STALL, "the response did not stall");
                    assert_eq!(response.status, 201, "{time:?}: {}", response.text());
                    assert_nothing_is_quarantined(&setup.bucket, one);
                });
                scope.spawn(move || {
                    let bucket = server.bucket();
                    bucket.put(&one.nar_path[1..], &one.nar);
                    bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
                    let faults = FaultProxy::in_front_of(bucket.address());
                    stall_once(&faults, one, time);
                    let through = bucket.through(faults.address());
                    let started = Instant::now();
                    run(&through, &["verify", "--deep", "--repair"]).is(0);
                    assert!(started.elapsed() > SHORT_STALL, "the response did not stall");
                    assert_nothing_is_quarantined(&bucket, one);
                });
            }
        }
    });
}

/// Stops the server while the NAR is being read for `action`, and continues it after this time.
fn while_it_is_stopped<T: Send>(
    garage: &Garage,
    faults: &FaultProxy,
    one: &Sample,
    time: Duration,
    action: impl FnOnce() -> T + Send,
) -> T {
    faults.clear_requests();
    std::thread::scope(|scope| {
        let started = Instant::now();
        let acting = scope.spawn(action);
        while !faults.requests().iter().any(|line| is_get_of(line, one)) {
            assert!(started.elapsed() < Duration::from_secs(60), "the NAR is not read");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        garage.pause(0);
        std::thread::sleep(time);
        assert!(!acting.is_finished(), "the NAR was read before the server was stopped");
        garage.resume(0);
        acting.join().expect("the task does not panic")
    })
}

#[test]
#[ignore = "needs Garage: tests/run --garage"]
fn a_nar_that_is_read_while_garage_is_stopped_is_not_damaged() {
    let garage = Garage::start(1);
    let bucket = garage.bucket("cache");
    let faults = FaultProxy::in_front_of(bucket.address());
    let through = bucket.through(faults.address());
    let daemon = over(&through).start();
    // Slow and large enough that most of the NAR is not read yet when the server is stopped.
    let ones = [
        sample(1, &Noise::new(1).bytes(32 * MIB)),
        sample(2, &Noise::new(2).bytes(32 * MIB)).packed(Compression::Zstd),
    ];
    for (one, time) in ones.iter().zip([SHORT_STALL, LONG_STALL]) {
        bucket.put(&one.nar_path[1..], &one.nar);
        let wanted = one.clone();
        faults.on(move |head| match is_get_of(head, &wanted) {
            true => Action::Slow(16 * MIB as u64),
            false => Action::Pass,
        });
        let response = while_it_is_stopped(&garage, &faults, one, time, || {
            put(&daemon, &one.narinfo_path, one.narinfo.as_bytes())
        });
        assert_nothing_is_quarantined(&bucket, one);
        // The only possible error is that the NAR could not be read in time.
        if response.status != 201 {
            assert!(
                (502..=504).contains(&response.status),
                "{} {}",
                response.head,
                response.text()
            );
            bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
        }
        while_it_is_stopped(&garage, &faults, one, time, || {
            run(&through, &["verify", "--deep", "--repair"])
        });
        assert_nothing_is_quarantined(&bucket, one);
        faults.all(Action::Pass);
        run(&through, &["verify", "--deep", "--repair"]).is(0);
        assert_nothing_is_quarantined(&bucket, one);
    }
}

/// Starts a download of a NAR.
fn start_download(daemon: &Daemon, sample: &Sample) -> Wire {
    let mut wire = Wire::to(daemon);
    let path = &sample.nar_path;
    wire.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    wire
}

fn a_nar_is_sent_completely_over_a_slow_connection_and_to_a_pausing_client(server: &TestServer) {
    let one = sample(1, &Noise::new(1).bytes(40 * MIB));
    let setup = FaultySetup::at(server);
    upload(&setup.daemon, &one);
    let slow = FaultProxy::in_front_of(setup.bucket.address());
    slow.all(Action::Slow(MIB as u64));
    let behind_a_slow_line = over(&setup.bucket.through(slow.address())).start();
    std::thread::scope(|scope| {
        let (one, setup) = (&one, &setup);
        scope.spawn(move || {
            let mut wire = start_download(&setup.daemon, one);
            assert_eq!(wire.head().status, 200);
            wire.wait_for(MIB);
            std::thread::sleep(LONG_STALL);
            assert!(wire.rest() == one.nar, "other bytes after the pause");
        });
        // The connection to the client is slow.
        scope.spawn(move || {
            let mut wire = start_download(&setup.daemon, one);
            assert_eq!(wire.head().status, 200);
            for count in 1..=40 {
                wire.wait_for(count * MIB);
                std::thread::sleep(Duration::from_secs(1));
            }
            assert!(wire.rest() == one.nar, "other bytes at a slow client");
        });
        // The connection to the server is slow.
        scope.spawn(|| {
            let started = Instant::now();
            let mut wire = start_download(&behind_a_slow_line, one);
            assert_eq!(wire.head().status, 200);
            assert!(wire.rest() == one.nar, "other bytes over a slow line");
            assert!(started.elapsed() > LONG_STALL, "the line was not slow");
        });
    });
}
