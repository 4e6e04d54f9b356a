//! Optional system calls: an old kernel, a sandbox, an emulator or a file system may not have those that the store
//! uses for speed or safety.

use std::fs::{File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::order::judge;
use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty};
use crate::support::daemon::Daemon;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::trace::TracedDaemon;
use crate::support::wire::Wire;

/// The calls, and the daemon's alternatives.
const CALLS: [&str; 10] = [
    "openat2",    // openat on the blocking pool
    "preadv2",    // pread on the blocking pool
    "statx",      // no cache of absent names; fstatat in the standard library
    "renameat2",  // link and unlink
    "fallocate",  // writes fail if there is no space
    "fadvise64",  // none
    "syncfs",     // a sync of each file
    "utimensat",  // uses are not recorded
    "flock",      // no cleanup of staging folders; no collection
    "faccessat2", // faccessat
];

fn age(file: &Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    let times = FileTimes::new().set_accessed(then).set_modified(then);
    File::options()
        .write(true)
        .open(file)
        .expect("present")
        .set_times(times)
        .expect("the owner may change it");
}

/// Uploads all samples concurrently, so that they are committed together.
fn upload(daemon: &Daemon, samples: &[Sample]) {
    std::thread::scope(|scope| {
        for sample in samples {
            scope.spawn(|| {
                let mut wire = Wire::to(daemon);
                for (path, body) in [
                    (&sample.nar_path, &sample.nar[..]),
                    (&sample.narinfo_path, sample.narinfo.as_bytes()),
                    // Once more, replacing the existing object.
                    (&sample.nar_path, &sample.nar[..]),
                ] {
                    let response = wire.request("PUT", path, body);
                    assert!([200, 201].contains(&response.status), "{} {}", path, response.head);
                }
            });
        }
    });
}

fn assert_serves(daemon: &Daemon, samples: &[Sample]) {
    let mut wire = Wire::to(daemon);
    for sample in samples {
        // Last used so long ago that the use is recorded before the response.
        for (path, hours) in [(&sample.nar_path, 20), (&sample.narinfo_path, 2)] {
            age(&daemon.dir().join(&path[1..]), hours);
        }
        let nar = wire.request("GET", &sample.nar_path, b"");
        assert!(nar.status == 200 && nar.body == sample.nar, "{}", nar.head);
        let narinfo = wire.request("GET", &sample.narinfo_path, b"");
        assert_eq!((narinfo.status, narinfo.text()), (200, sample.narinfo.clone()));
        assert_eq!(wire.request("HEAD", &sample.nar_path, b"").status, 200);
    }
    assert_eq!(wire.request("GET", &format!("/{:0>32}.narinfo", 7), b"").status, 404);
    assert_eq!(wire.request("GET", "/health", b"").status, 200);
}

#[test]
fn uploads_and_downloads_work_without_optional_system_calls() {
    let lengths = [0, 10, 40_000, 200_000, 9_000_000, 300];
    let samples: Vec<Sample> = (1u8..)
        .zip(lengths)
        .map(|(number, length)| sample(number, &vec![number; length]))
        .collect();
    for error in ["ENOSYS", "EINVAL", "EPERM"] {
        for calls in CALLS.into_iter().chain([&*CALLS.join(",")]) {
            let scratch = Scratch::new();
            let start = || Daemon::builder().dir(scratch.path()).failing(calls, error).start();
            let daemon = start();
            upload(&daemon, &samples);
            assert_serves(&daemon, &samples);
            assert_eq!(assert_consistent(daemon.dir()), samples.len(), "{calls} {error}");
            assert_staging_is_empty(daemon.dir());
            assert_eq!(daemon.stop().0.code(), Some(0), "{calls} {error}");
            let daemon = start();
            assert_serves(&daemon, &samples);
            let (status, log) = daemon.stop();
            assert!(status.success() && !log.contains("ERROR"), "{calls} {error}: {log}");
        }
    }
}

#[test]
fn every_file_is_synced_by_itself_where_a_sync_of_all_does_not_report_errors() {
    let scratch = Scratch::new();
    let root = scratch.join("cache");
    // Like Linux before 5.8, where syncfs reports no errors.
    let daemon = TracedDaemon::start_by(&["setarch", "--uname-2.6"], &root, &[]);
    let uploads = |number: u8| {
        let sample = sample(number, &vec![number; 1000 * usize::from(number)]);
        let mut wire = Wire::to_address(daemon.address());
        for (path, body) in
            [(&sample.nar_path, &sample.nar[..]), (&sample.narinfo_path, sample.narinfo.as_bytes())]
        {
            assert_eq!(wire.request("PUT", path, body).status, 201);
        }
    };
    std::thread::scope(|scope| {
        (1..=12).for_each(|number| drop(scope.spawn(move || uploads(number))));
    });
    let (trace, _) = daemon.stop();
    let root = root.canonicalize().expect("present");
    let verdict = judge(&trace, root.to_str().expect("UTF-8"));
    assert_eq!(verdict.acknowledged.len(), 24);
    assert!(verdict.broken.is_empty(), "{:#?}", verdict.broken);
    assert!(trace.iter().all(|call| call.name != "syncfs"));
}
