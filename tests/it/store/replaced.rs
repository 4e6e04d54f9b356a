//! The directory of a running daemon is wiped, restored, covered by a mount, or moved: the daemon serves and stores
//! what is at its path, or reports an error where that is ambiguous.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::cache_dir::{assert_consistent, objects};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::nix::Nix;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;
use crate::support::wire::Wire;

const ABSENT: &str = "/00000000000000000000000000000007.narinfo";

fn put(daemon: &Daemon, path: &str, body: impl AsRef<[u8]>) -> u16 {
    Wire::to(daemon).request("PUT", path, body.as_ref()).status
}

#[track_caller]
fn upload(daemon: &Daemon, sample: &Sample) {
    assert_eq!(put(daemon, &sample.nar_path, &sample.nar), 201);
    assert_eq!(put(daemon, &sample.narinfo_path, &sample.narinfo), 201);
}

fn status(daemon: &Daemon, path: &str) -> u16 {
    daemon.get(path).0
}

#[track_caller]
fn assert_serves(daemon: &Daemon, sample: &Sample) {
    assert_eq!(status(daemon, &sample.nar_path), 200);
    let (status, narinfo) = daemon.get(&sample.narinfo_path);
    assert_eq!((status, narinfo), (200, sample.narinfo.clone().into_bytes()));
}

/// A cache at a symbolic link, whose target can change.
struct LinkedCache {
    scratch: Scratch,
    daemon: Daemon,
}

impl LinkedCache {
    fn new() -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.join("here")).expect("created");
        symlink(scratch.join("here"), scratch.join("cache")).expect("created");
        let daemon = Daemon::builder().dir(&scratch.join("cache")).start();
        Self { scratch, daemon }
    }

    fn point_to(&self, target: &Path) {
        fs::remove_file(self.scratch.join("cache")).expect("present");
        symlink(target, self.scratch.join("cache")).expect("created");
    }
}

#[test]
fn readers_get_503_while_the_directory_is_on_another_disk() {
    let cache = LinkedCache::new();
    let (stored, refused) = (sample(1, b"x"), sample(2, &[2; 200_000]));
    upload(&cache.daemon, &stored);
    assert_eq!(status(&cache.daemon, ABSENT), 404);
    let disk = Disk::new("size=8m");
    cache.point_to(disk.path());
    cache.daemon.wait_until("the change is noticed", || status(&cache.daemon, ABSENT) == 503);
    for path in [ABSENT, &refused.narinfo_path, &refused.nar_path] {
        assert_eq!(status(&cache.daemon, path), 503, "{path}");
    }
    // An invalid name is a 404 whatever the state of the directory.
    assert_eq!(status(&cache.daemon, "/nar/x"), 404);
    assert_eq!(put(&cache.daemon, &refused.nar_path, &refused.nar), 503);
    assert_eq!(put(&cache.daemon, &refused.narinfo_path.replace("narinfo", "ls"), "{}"), 503);
    assert_eq!(status(&cache.daemon, "/health"), 503);
    assert_eq!(fs::read_dir(disk.path()).expect("readable").count(), 0);
    cache.daemon.wait_for_log("is on another file system than when the daemon started");
    let retry = Wire::to(&cache.daemon).request("GET", ABSENT, b"");
    assert_eq!((retry.status, retry.header("retry-after")), (503, "1"));

    // The original directory is back, and no restart is needed.
    cache.point_to(&cache.scratch.join("here"));
    cache.daemon.wait_until("the change is noticed", || status(&cache.daemon, ABSENT) == 404);
    assert_serves(&cache.daemon, &stored);
    assert_eq!(objects(&cache.scratch.join("here")).len(), 2);
    upload(&cache.daemon, &refused);
    assert_serves(&cache.daemon, &refused);
}

#[test]
fn a_disk_that_is_gone_is_not_replaced_by_the_one_under_its_mount_point() {
    let cache = LinkedCache::new();
    let stored = sample(1, b"x");
    upload(&cache.daemon, &stored);
    // The directory is missing, and its parent is on another file system.
    let disk = Disk::new("size=8m");
    fs::remove_file(cache.scratch.join("cache")).expect("present");
    fs::rename(cache.scratch.join("here"), cache.scratch.join("elsewhere")).expect("renamed");
    symlink(disk.path().join("missing"), cache.scratch.join("cache")).expect("created");
    cache.daemon.wait_until("the change is noticed", || status(&cache.daemon, ABSENT) == 503);
    // Longer than the daemon takes to create a removed directory.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        assert_eq!(status(&cache.daemon, ABSENT), 503);
    }
    assert_eq!(put(&cache.daemon, &stored.nar_path, &stored.nar), 503);
    assert_eq!(fs::read_dir(disk.path()).expect("readable").count(), 0);
}

#[test]
fn a_wiped_directory_is_created_again_and_accepts_uploads_at_once() {
    let scratch = Scratch::new();
    let dir = scratch.join("a/cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let (before, after) = (sample(1, b"x"), sample(2, &[2; 200_000]));
    upload(&daemon, &before);
    for round in 0..2 {
        // In the second round with its parent.
        let wiped = if round == 0 { &dir } else { &scratch.join("a") };
        fs::remove_dir_all(wiped).expect("present");
        // The upload waits until the directory exists again.
        upload(&daemon, &after);
        assert_serves(&daemon, &after);
        for path in [&before.narinfo_path, &before.nar_path] {
            daemon.wait_until("readers get a 404", || status(&daemon, path) == 404);
        }
        assert_eq!(assert_consistent(&dir), 1);
        let info = fs::read(dir.join("nix-cache-info")).expect("written again");
        assert_eq!(info, daemon.get("/nix-cache-info").1);
    }
    assert_eq!(status(&daemon, "/health"), 200);
}

#[test]
fn a_wiped_directory_is_created_again_by_reads_alone() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    fs::remove_dir_all(&dir).expect("present");
    // Until the directory exists again, an absent object is an error and not a 404.
    daemon.wait_until("the directory is created", || {
        let status = status(&daemon, ABSENT);
        assert!(status == 503 || dir.exists(), "{status} without a directory");
        status == 404
    });
    assert!(dir.join("nar").is_dir());
}

/// A copy of a cache's directory, like a backup.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("created");
    fs::create_dir(to.join("nar")).expect("created");
    for key in objects(from) {
        fs::copy(from.join(&key), to.join(&key)).expect("copied");
    }
}

#[test]
fn a_directory_that_was_restored_from_a_backup_is_served_within_seconds() {
    let scratch = Scratch::new();
    let (dir, backup) = (scratch.join("cache"), scratch.join("backup"));
    let daemon = Daemon::builder().dir(&dir).start();
    let (old, new, later) = (sample(1, b"x"), sample(2, b"y"), sample(3, &[3; 100_000]));
    upload(&daemon, &old);
    copy(&dir, &backup);
    let resigned = format!("{}Sig: backup-1:{}==\n", old.narinfo, "A".repeat(86));
    fs::write(backup.join(&old.narinfo_path[1..]), &resigned).expect("written");
    upload(&daemon, &new);
    // A cached negative lookup, which the restore makes wrong.
    let planted = sample(4, b"z");
    for _ in 0..3 {
        assert_eq!(status(&daemon, &planted.narinfo_path), 404);
    }
    for (path, text) in
        [(&planted.narinfo_path, planted.narinfo.as_bytes()), (&planted.nar_path, &planted.nar[..])]
    {
        fs::write(backup.join(&path[1..]), text).expect("written");
    }
    fs::rename(&dir, scratch.join("before")).expect("renamed");
    fs::rename(&backup, &dir).expect("renamed");

    // The file was found all the time; the daemon also notices that it is another one.
    daemon.wait_until("the restored narinfo is served", || {
        daemon.get(&old.narinfo_path).1 == resigned.as_bytes()
    });
    for path in [&new.narinfo_path, &new.nar_path] {
        daemon.wait_until("objects that are not in the backup are absent", || {
            status(&daemon, path) == 404
        });
    }
    assert_serves(&daemon, &planted);
    upload(&daemon, &later);
    assert!(dir.join(&later.nar_path[1..]).exists());
    assert_eq!(objects(&scratch.join("before")).len(), 4, "something was stored there");
    assert_eq!(assert_consistent(&dir), 3);
}

#[test]
fn an_upload_is_not_acknowledged_in_a_directory_that_was_replaced_during_it() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let sample = sample(1, &[1; 300_000]);
    // The file is staged, too.
    daemon.wait_for_log("wrote nix-cache-info");
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        sample.nar_path,
        sample.nar.len()
    ));
    wire.send_bytes(&sample.nar[..100_000]);
    daemon.wait_until("the upload is being staged", || {
        let staged = crate::support::cache_dir::staging(&dir);
        staged.iter().any(|name| !name.ends_with('/'))
    });
    fs::rename(&dir, scratch.join("before")).expect("renamed");
    fs::create_dir(&dir).expect("created");
    wire.send_bytes(&sample.nar[100_000..]);
    assert_eq!(wire.response().status, 503);
    assert_eq!(objects(&scratch.join("before")), [""; 0]);
    assert_eq!(objects(&dir), [""; 0]);
    upload(&daemon, &sample);
    assert_serves(&daemon, &sample);
    assert_eq!(assert_consistent(&dir), 1);
}

#[test]
fn folders_in_the_directory_may_be_removed_at_any_time() {
    let daemon = Daemon::start();
    let folders: [&[&str]; 4] =
        [&[".nix-stored"], &["nar"], &[".nix-stored/staging"], &["nar", ".nix-stored"]];
    for (number, folders) in (1..).zip(folders) {
        for folder in folders {
            fs::remove_dir_all(daemon.dir().join(folder)).expect("present");
        }
        // One is collected in memory, one is staged.
        for sample in [sample(number, &[number]), sample(number + 100, &[number; 200_000])] {
            upload(&daemon, &sample);
            assert_serves(&daemon, &sample);
        }
    }
    let old = sample(1, &[1]);
    assert_eq!(status(&daemon, &old.nar_path), 404, "the object was removed with its folder");
}

#[test]
fn uploads_of_many_clients_survive_replaced_directories() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let mut gone: Vec<PathBuf> = Vec::new();
    for round in 0..4u8 {
        let acknowledged: Vec<String> = std::thread::scope(|scope| {
            let uploads: Vec<_> = (0..4u8)
                .map(|client| {
                    let daemon = &daemon;
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for number in 0..8 {
                            let sample =
                                sample(round * 32 + client * 8 + number, &[client; 70_000]);
                            if put(daemon, &sample.nar_path, &sample.nar) == 201 {
                                done.push(sample.nar_path);
                            }
                        }
                        done
                    })
                })
                .collect();
            let before = scratch.join(&format!("before-{round}"));
            fs::rename(&dir, &before).expect("renamed");
            fs::create_dir(&dir).expect("created");
            gone.push(before);
            uploads
                .into_iter()
                .flat_map(|upload| upload.join().expect("the process ends"))
                .collect()
        });
        // Acknowledged objects are in the directory of that time.
        for path in acknowledged {
            let there = gone.iter().chain([&dir]).any(|dir| dir.join(&path[1..]).exists());
            assert!(there, "{path} is nowhere");
        }
    }
    assert_eq!(put(&daemon, &sample(250, b"x").nar_path, &sample(250, b"x").nar), 201);
    assert_consistent(&dir);
}

#[test]
fn nix_uploads_and_substitutes_again_after_the_directory_was_wiped() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let nix = Nix::new();
    let paths = nix.add_tiny_files("wiped", 20);
    nix.copy_to(daemon.url(), &paths);
    fs::remove_dir_all(&dir).expect("present");
    // Another machine, without cached lookups.
    let other = Nix::new();
    let paths = other.add_tiny_files("wiped", 20);
    other.copy_to(daemon.url(), &paths);
    assert_eq!(assert_consistent(&dir), 20);
    let reader = Nix::new();
    reader.copy_from(daemon.url(), &paths);
    reader.assert_has_the_same(&other, &paths);
}
