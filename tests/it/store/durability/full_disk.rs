//! A full disk: uploads are refused with the reason until there is space again, and everything else works.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_stored::nix::CachePath;
use nix_stored::store::{FsStore, MinimumRate, Store, StoreError, Upload};

use crate::support::audit::{assert_nothing_is_false, assert_nothing_is_staged};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::nix::{Nix, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::wire::{Received, Wire};

/// What the refusal has to say.
const REASON: &str = "the cache's disk is full";

const MIB: usize = 1024 * 1024;

/// Nix gives up at once, and does not repeat the upload, nor wait. Generous for a busy machine;
/// its retries alone would take twice as long.
const AT_ONCE: Duration = Duration::from_secs(20);

fn noisy(number: u8, length: usize) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(length))
}

fn put(daemon: &Daemon, path: &str, body: &[u8]) -> Received {
    Wire::to(daemon).request("PUT", path, body)
}

/// Announces an upload of so many bytes; the connection, and the status of what is answered before
/// any of them is sent.
fn announce(daemon: &Daemon, path: &str, length: usize) -> (Wire, u16) {
    let mut wire = Wire::to(daemon);
    wire.send(&format!(
        "PUT {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    ));
    let status = wire.head().status;
    (wire, status)
}

#[track_caller]
fn assert_refused(answer: &Received) {
    assert_eq!(answer.status, 413, "{} {}", answer.head, answer.text());
    assert!(answer.text().contains(REASON), "{}", answer.text());
    assert_eq!(answer.text().lines().count(), 1, "{}", answer.text());
}

/// Everything that was taken is there, whole, and nothing else is.
#[track_caller]
fn assert_serves(daemon: &Daemon, taken: &[Sample]) {
    for sample in taken {
        let nar = Wire::to(daemon).request("GET", &sample.nar_path, b"");
        assert!(nar.status == 200 && nar.body == sample.nar, "{}", nar.head);
        let narinfo = Wire::to(daemon).request("GET", &sample.narinfo_path, b"");
        assert_eq!((narinfo.status, narinfo.text()), (200, sample.narinfo.clone()));
    }
    assert_eq!(assert_nothing_is_false(daemon.dir()), taken.len());
    assert_nothing_is_staged(daemon.dir());
}

/// Uploads samples until one is refused; those that were taken, and that one.
#[track_caller]
fn fill(daemon: &Daemon, length: usize, at_most: u8) -> (Vec<Sample>, Sample) {
    let mut taken = Vec::new();
    for number in 1..=at_most {
        let sample = noisy(number, length);
        let nar = put(daemon, &sample.nar_path, &sample.nar);
        if nar.status != 201 {
            assert_refused(&nar);
            return (taken, sample);
        }
        let narinfo = put(daemon, &sample.narinfo_path, sample.narinfo.as_bytes());
        if narinfo.status != 201 {
            assert_refused(&narinfo);
            // A NAR without a narinfo is no harm, and not what the test counts.
            std::fs::remove_file(daemon.dir().join(&sample.nar_path[1..])).expect("it is there");
            return (taken, sample);
        }
        taken.push(sample);
    }
    panic!("{at_most} samples were taken, and the disk is not full")
}

fn remove(daemon: &Daemon, sample: &Sample) {
    for path in [&sample.narinfo_path, &sample.nar_path] {
        std::fs::remove_file(daemon.dir().join(&path[1..])).expect("it is there");
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

    // Again and again, however large, and in one connection after another: nothing is used up.
    for _ in 0..20 {
        assert_refused(&put(&daemon, &refused.nar_path, &refused.nar));
    }
    assert_serves(&daemon, &taken);

    // What fits still fits.
    let small = noisy(100, 1000);
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
    let (sample, free) = (noisy(1, 3 * MIB), disk.free());
    assert_eq!(announce(&daemon, &sample.nar_path, 9 * MIB).1, 413);
    assert_nothing_is_staged(daemon.dir());

    // The space of an upload under way is its own, though it has not been sent yet.
    let (wire, status) = announce(&daemon, &sample.nar_path, 6 * MIB);
    assert_eq!(status, 100);
    assert_eq!(announce(&daemon, &sample.nar_path, sample.nar.len()).1, 413);
    // It is given up, and what it had can be had again.
    drop(wire);
    daemon.wait_until("what it had is free again", || disk.free() >= free);
    assert_eq!(put(&daemon, &sample.nar_path, &sample.nar).status, 201);
    assert_nothing_is_staged(daemon.dir());
}

/// An upload that announces `length` bytes and sends none.
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
    let store = FsStore::with_minimum_rate(&dir, 0, rate).expect("it can be opened");
    let store: Arc<Store> = Arc::new(store.into());
    let (slow, other) = (noisy(1, 3 * MIB), noisy(2, 3 * MIB));
    let free = disk.free();
    let mut trickling = begin(&store, &slow, 6 * MIB).expect("there is space");
    trickling.write(&slow.nar[..1]).expect("there is space");
    assert!(matches!(begin(&store, &other, other.nar.len()), Err(StoreError::NoSpace { .. })));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut upload = loop {
        match begin(&store, &other, other.nar.len()) {
            Ok(upload) => break upload,
            Err(error) => assert!(Instant::now() < deadline, "{error} for ever"),
        }
    };
    for chunk in other.nar.chunks(64 * 1024) {
        upload.write(chunk).expect("it has its space");
    }
    upload.commit().expect("it is stored");

    // It goes on without, as far as there is space.
    trickling.write(&slow.nar[1..]).expect("there is space for that");
    trickling.commit().expect("it is stored");
    for sample in [&slow, &other] {
        assert!(std::fs::read(dir.join(&sample.nar_path[1..])).expect("it is there") == sample.nar);
    }
    // Nobody has to ask for it to be given back.
    std::fs::remove_file(dir.join(&slow.nar_path[1..])).expect("it is there");
    std::fs::remove_file(dir.join(&other.nar_path[1..])).expect("it is there");
    let begun = begin(&store, &slow, 6 * MIB).expect("there is space");
    while disk.free() + (MIB as u64) < free {
        assert!(Instant::now() < deadline, "it is never given back");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(begun);
}

#[test]
fn concurrent_uploads_leave_the_configured_space_free() {
    let disk = Disk::new("size=24m");
    let rate = MinimumRate { bytes: 64 * 1024, over: Duration::from_millis(300) };
    let reserve = 4 * MIB as u64;
    let store = FsStore::with_minimum_rate(&disk.path().join("cache"), reserve, rate);
    let store: Arc<Store> = Arc::new(store.expect("it can be opened").into());
    let samples: Vec<Sample> = (1..=8).map(|number| noisy(number, 10)).collect();
    let begun: Vec<_> = std::thread::scope(|scope| {
        let store = &store;
        let begin = |sample| scope.spawn(move || begin(store, sample, 6 * MIB).ok());
        let begun: Vec<_> = samples.iter().map(begin).collect();
        begun.into_iter().filter_map(|begun| begun.join().expect("no panic")).collect()
    });
    assert!(disk.free() >= reserve, "{} uploads left {} bytes", begun.len(), disk.free());
    drop(begun);
    // One that has lost its space must leave what shall stay free, too.
    let mut slow = begin(&store, &samples[0], 12 * MIB).expect("there is space");
    let deadline = Instant::now() + Duration::from_secs(60);
    while disk.free() < 20 * MIB as u64 {
        assert!(Instant::now() < deadline, "it keeps its space");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::write(disk.path().join("ballast"), vec![1; 10 * MIB]).expect("there is room");
    let chunk = vec![1; MIB];
    let refused = (0..12).find_map(|_| slow.write(&chunk).err());
    assert!(matches!(refused, Some(StoreError::Reserve { .. })), "{refused:?}");
    assert!(disk.free() + 2 * MIB as u64 >= reserve, "{} bytes are free", disk.free());
}

#[test]
fn uploads_that_fill_the_disk_together_damage_nothing() {
    let disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let samples: Vec<Sample> = (1..=12).map(|number| noisy(number, MIB)).collect();
    let answers: Vec<(Sample, Received)> = std::thread::scope(|scope| {
        let uploads: Vec<_> = samples
            .into_iter()
            .map(|sample| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let answer = put(daemon, &sample.nar_path, &sample.nar);
                    (sample, answer)
                })
            })
            .collect();
        uploads.into_iter().map(|upload| upload.join().expect("it answers")).collect()
    });
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| answer.status == 201);
    refused.iter().for_each(|(_, answer)| assert_refused(answer));
    assert!(taken.len() <= 7 && refused.len() >= 5, "{} and {}", taken.len(), refused.len());
    for (sample, _) in &taken {
        let nar = Wire::to(&daemon).request("GET", &sample.nar_path, b"");
        assert!(nar.status == 200 && nar.body == sample.nar, "{}", nar.head);
    }
    assert_nothing_is_false(daemon.dir());
    assert_nothing_is_staged(daemon.dir());
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
    let begun = Instant::now();
    let said = nix.fails(&with_paths(&["nix", "copy", "--to", &url], &large));
    let took = begun.elapsed();
    assert!(said.contains("413") && said.contains(REASON), "{said}");
    assert!(took < AT_ONCE, "{took:?}: {said}");
    assert_eq!(assert_nothing_is_false(daemon.dir()), small.len());
    assert_nothing_is_staged(daemon.dir());

    // Nothing of it stays in Nix's way either.
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

    // One file can be staged, but there is none left for the folder that it belongs in.
    while disk.free_files() > 0 {
        let file = disk.path().join(format!("filler-{}", disk.free_files()));
        std::fs::write(file, "").expect("there is one left");
    }
    remove(&daemon, &taken.remove(0));
    // The daemon may still be closing what it sent last.
    daemon.wait_until("what was removed is free", || disk.free_files() == 2);
    std::fs::write(disk.path().join("filler"), "").expect("there are two");
    let log = "/log/8ha1dhmx807czjczmwy078s4r9s254il-one.drv";
    assert_refused(&put(&daemon, log, b"a log"));
    daemon.wait_until("what was staged is gone", || disk.free_files() == 1);
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
