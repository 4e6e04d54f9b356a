//! A full disk: uploads are refused with the reason until there is space again, and everything else works.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_stored::nix::CachePath;
use nix_stored::store::{FsStore, MinimumRate, Store, StoreError, Upload};

use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::nix::{Nix, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::wire::{RawResponse, Wire};

/// A part of the error message.
const REASON: &str = "the cache's disk is full";

const MIB: usize = 1024 * 1024;

/// Nix fails at once, without a retry. The limit allows for a busy machine; the retries alone would
/// take twice as long.
const AT_ONCE: Duration = Duration::from_secs(20);

fn random_sample(number: u8, length: usize) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(length))
}

fn put(daemon: &Daemon, path: &str, body: &[u8]) -> RawResponse {
    Wire::to(daemon).request("PUT", path, body)
}

/// Starts an upload with this Content-Length. Returns the connection, and the status that arrives
/// before any byte of the body is sent.
fn announce(daemon: &Daemon, path: &str, length: usize) -> (Wire, u16) {
    let mut wire = Wire::to(daemon);
    wire.send(&format!(
        "PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    ));
    let status = wire.head().status;
    (wire, status)
}

#[track_caller]
fn assert_refused(response: &RawResponse) {
    assert_eq!(response.status, 413, "{} {}", response.head, response.text());
    assert!(response.text().contains(REASON), "{}", response.text());
    assert_eq!(response.text().lines().count(), 1, "{}", response.text());
}

/// Checks that the accepted objects are stored completely, and no others.
#[track_caller]
fn assert_serves(daemon: &Daemon, taken: &[Sample]) {
    for sample in taken {
        let nar = Wire::to(daemon).request("GET", &sample.nar_path, b"");
        assert!(nar.status == 200 && nar.body == sample.nar, "{}", nar.head);
        let narinfo = Wire::to(daemon).request("GET", &sample.narinfo_path, b"");
        assert_eq!((narinfo.status, narinfo.text()), (200, sample.narinfo.clone()));
    }
    assert_eq!(assert_consistent(daemon.dir()), taken.len());
    assert_staging_is_empty(daemon.dir());
}

/// Uploads samples until one is refused. Returns the accepted ones, and the refused one.
#[track_caller]
fn fill(daemon: &Daemon, length: usize, at_most: u8) -> (Vec<Sample>, Sample) {
    let mut taken = Vec::new();
    for number in 1..=at_most {
        let sample = random_sample(number, length);
        let nar = put(daemon, &sample.nar_path, &sample.nar);
        if nar.status != 201 {
            assert_refused(&nar);
            return (taken, sample);
        }
        let narinfo = put(daemon, &sample.narinfo_path, sample.narinfo.as_bytes());
        if narinfo.status != 201 {
            assert_refused(&narinfo);
            // A NAR without a narinfo does no harm, but would be counted.
            std::fs::remove_file(daemon.dir().join(&sample.nar_path[1..])).expect("present");
            return (taken, sample);
        }
        taken.push(sample);
    }
    panic!("{at_most} samples were taken, and the disk is not full")
}

fn remove(daemon: &Daemon, sample: &Sample) {
    for path in [&sample.narinfo_path, &sample.nar_path] {
        std::fs::remove_file(daemon.dir().join(&path[1..])).expect("present");
    }
}

#[test]
fn a_full_disk_refuses_uploads_and_nothing_else() {
    let disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let (mut taken, refused) = fill(&daemon, MIB, 8);
    assert!(taken.len() >= 6, "{} MiB were taken of 8", taken.len());
    assert!(disk.free() < MIB as u64 + 4096, "refused with {} bytes free", disk.free());
    assert_serves(&daemon, &taken);
    daemon.wait_for_log(REASON);

    // Repeated refusals, of any size and on new connections, use up no space.
    for _ in 0..20 {
        assert_refused(&put(&daemon, &refused.nar_path, &refused.nar));
    }
    assert_serves(&daemon, &taken);

    // A small upload still fits.
    let small = random_sample(100, 1000);
    assert_eq!(put(&daemon, &small.nar_path, &small.nar).status, 201);
    assert_eq!(put(&daemon, &small.narinfo_path, small.narinfo.as_bytes()).status, 201);
    taken.push(small);
    assert_serves(&daemon, &taken);

    remove(&daemon, &taken.remove(0));
    assert_eq!(put(&daemon, &refused.nar_path, &refused.nar).status, 201);
    assert_eq!(put(&daemon, &refused.narinfo_path, refused.narinfo.as_bytes()).status, 201);
    taken.push(refused);
    assert_serves(&daemon, &taken);
}

#[test]
fn an_upload_that_will_not_fit_is_refused_before_its_body() {
    let disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let (sample, free) = (random_sample(1, 3 * MIB), disk.free());
    assert_eq!(announce(&daemon, &sample.nar_path, 9 * MIB).1, 413);
    assert_staging_is_empty(daemon.dir());

    // The space of a running upload is reserved, though the body has not been sent yet.
    let (wire, status) = announce(&daemon, &sample.nar_path, 6 * MIB);
    assert_eq!(status, 100);
    assert_eq!(announce(&daemon, &sample.nar_path, sample.nar.len()).1, 413);
    // The upload is aborted, and its space is free again.
    drop(wire);
    daemon.wait_until("the space of the upload is free again", || disk.free() >= free);
    assert_eq!(put(&daemon, &sample.nar_path, &sample.nar).status, 201);
    assert_staging_is_empty(daemon.dir());
}

/// Starts an upload that declares `length` bytes, and sends none.
fn begin(
    store: &Arc<Store>,
    sample: &Sample,
    length: usize,
) -> Result<Box<dyn Upload>, StoreError> {
    let path: CachePath = sample.nar_path[1..].parse().expect("the name of a NAR");
    store.start_upload(&path, Some(length as u64))
}

#[test]
fn a_slow_upload_does_not_reserve_the_disk() {
    let disk = Disk::new("size=8m");
    let rate = MinimumRate { bytes: 64 * 1024, over: Duration::from_millis(300) };
    let dir = disk.path().join("cache");
    let store = FsStore::with_minimum_rate(&dir, 0, rate).expect("the store opens");
    let store: Arc<Store> = Arc::new(store.into());
    let (slow, other) = (random_sample(1, 3 * MIB), random_sample(2, 3 * MIB));
    let free = disk.free();
    let mut slow_upload = begin(&store, &slow, 6 * MIB).expect("there is enough space");
    slow_upload.write(&slow.nar[..1]).expect("there is enough space");
    assert!(matches!(begin(&store, &other, other.nar.len()), Err(StoreError::NoSpace { .. })));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut upload = loop {
        match begin(&store, &other, other.nar.len()) {
            Ok(upload) => break upload,
            Err(error) => assert!(Instant::now() < deadline, "{error} for ever"),
        }
    };
    for chunk in other.nar.chunks(64 * 1024) {
        upload.write(chunk).expect("the space is reserved");
    }
    upload.commit().expect("stored");

    // The upload continues without a reservation, as long as there is space.
    slow_upload.write(&slow.nar[1..]).expect("there is enough space");
    slow_upload.commit().expect("stored");
    for sample in [&slow, &other] {
        assert!(std::fs::read(dir.join(&sample.nar_path[1..])).expect("present") == sample.nar);
    }
    // The space is freed without a request.
    std::fs::remove_file(dir.join(&slow.nar_path[1..])).expect("present");
    std::fs::remove_file(dir.join(&other.nar_path[1..])).expect("present");
    let started = begin(&store, &slow, 6 * MIB).expect("there is enough space");
    while disk.free() + (MIB as u64) < free {
        assert!(Instant::now() < deadline, "the reservation does not expire");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(started);
}

#[test]
fn concurrent_uploads_leave_the_configured_space_free() {
    let disk = Disk::new("size=24m");
    let rate = MinimumRate { bytes: 64 * 1024, over: Duration::from_millis(300) };
    let reserve = 4 * MIB as u64;
    let store = FsStore::with_minimum_rate(&disk.path().join("cache"), reserve, rate);
    let store: Arc<Store> = Arc::new(store.expect("the store opens").into());
    let samples: Vec<Sample> = (1..=8).map(|number| random_sample(number, 10)).collect();
    let started: Vec<_> = std::thread::scope(|scope| {
        let store = &store;
        let begin = |sample| scope.spawn(move || begin(store, sample, 6 * MIB).ok());
        let started: Vec<_> = samples.iter().map(begin).collect();
        started.into_iter().filter_map(|started| started.join().expect("no panic")).collect()
    });
    assert!(disk.free() >= reserve, "{} uploads left {} bytes", started.len(), disk.free());
    drop(started);
    // An upload that has lost its reservation must also respect the minimum of free space.
    let mut slow = begin(&store, &samples[0], 12 * MIB).expect("there is enough space");
    let deadline = Instant::now() + Duration::from_secs(60);
    while disk.free() < 20 * MIB as u64 {
        assert!(Instant::now() < deadline, "the upload keeps its reservation");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::write(disk.path().join("ballast"), vec![1; 10 * MIB]).expect("there is enough space");
    let chunk = vec![1; MIB];
    let refused = (0..12).find_map(|_| slow.write(&chunk).err());
    assert!(matches!(refused, Some(StoreError::Reserve { .. })), "{refused:?}");
    assert!(disk.free() + 2 * MIB as u64 >= reserve, "{} bytes are free", disk.free());
}

#[test]
fn uploads_that_fill_the_disk_together_damage_nothing() {
    let disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let samples: Vec<Sample> = (1..=12).map(|number| random_sample(number, MIB)).collect();
    let responses: Vec<(Sample, RawResponse)> = std::thread::scope(|scope| {
        let uploads: Vec<_> = samples
            .into_iter()
            .map(|sample| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let response = put(daemon, &sample.nar_path, &sample.nar);
                    (sample, response)
                })
            })
            .collect();
        uploads.into_iter().map(|upload| upload.join().expect("a response arrives")).collect()
    });
    let (taken, refused): (Vec<_>, Vec<_>) =
        responses.into_iter().partition(|(_, response)| response.status == 201);
    refused.iter().for_each(|(_, response)| assert_refused(response));
    assert!(taken.len() <= 7 && refused.len() >= 5, "{} and {}", taken.len(), refused.len());
    for (sample, _) in &taken {
        let nar = Wire::to(&daemon).request("GET", &sample.nar_path, b"");
        assert!(nar.status == 200 && nar.body == sample.nar, "{}", nar.head);
    }
    assert_consistent(daemon.dir());
    assert_staging_is_empty(daemon.dir());
}

#[test]
fn nix_reports_a_full_disk_and_ends() {
    let disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let nix = Nix::new();
    let small = nix.add_tiny_files("small", 3);
    nix.copy_to(daemon.url(), &small);
    let large = vec![nix.add_big_file(12)];

    let url = format!("{}?compression=none", daemon.url());
    let started = Instant::now();
    let printed = nix.fails(&with_paths(&["nix", "copy", "--to", &url], &large));
    let took = started.elapsed();
    assert!(printed.contains("413") && printed.contains(REASON), "{printed}");
    assert!(took < AT_ONCE, "{took:?}: {printed}");
    assert_eq!(assert_consistent(daemon.dir()), small.len());
    assert_staging_is_empty(daemon.dir());

    // The failed copy does not affect later copies of Nix.
    let fits = vec![nix.add_big_file(2)];
    nix.copy_to(&url, &fits);
    let reader = Nix::new();
    reader.ok(&with_paths(&["nix", "copy", "--no-check-sigs", "--from", daemon.url()], &fits));
    reader.assert_has_the_same(&nix, &fits);
}

#[test]
fn a_disk_without_room_for_one_more_file_refuses_uploads_and_nothing_else() {
    let disk = Disk::new("size=64m,nr_inodes=40");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let (mut taken, refused) = fill(&daemon, 1000, 40);
    assert!(taken.len() >= 10 && disk.free() > 32 << 20, "{} and {}", taken.len(), disk.free());
    assert_serves(&daemon, &taken);

    // One file can be staged, but there is no inode for the folder of the object.
    while disk.free_files() > 0 {
        let file = disk.path().join(format!("filler-{}", disk.free_files()));
        std::fs::write(file, "").expect("one inode is free");
    }
    remove(&daemon, &taken.remove(0));
    // The daemon may still be closing the files of its last responses.
    daemon.wait_until("the inodes of removed files are free", || disk.free_files() == 2);
    std::fs::write(disk.path().join("filler"), "").expect("two inodes are free");
    let log = "/log/8ha1dhmx807czjczmwy078s4r9s254il-one.drv";
    assert_refused(&put(&daemon, log, b"a log"));
    daemon.wait_until("the staged file is removed", || disk.free_files() == 1);
    assert_serves(&daemon, &taken);

    remove(&daemon, &taken.remove(0));
    assert_eq!(put(&daemon, log, b"a log").status, 201);
    assert_eq!(Wire::to(&daemon).request("GET", log, b"").text(), "a log");
    remove(&daemon, &taken.remove(0));
    assert_eq!(put(&daemon, &refused.nar_path, &refused.nar).status, 201);
    assert_eq!(put(&daemon, &refused.narinfo_path, refused.narinfo.as_bytes()).status, 201);
    taken.push(refused);
    assert_serves(&daemon, &taken);
}
