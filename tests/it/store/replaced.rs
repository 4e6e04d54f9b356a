//! The directory of a running daemon is wiped, restored, covered by a mount, or moved: the daemon serves and stores
//! what is at its path, or reports an error where that is ambiguous.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::audit::{assert_nothing_is_false, objects};
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
fn serves(daemon: &Daemon, sample: &Sample) {
    assert_eq!(status(daemon, &sample.nar_path), 200);
    let (status, narinfo) = daemon.get(&sample.narinfo_path);
    assert_eq!((status, narinfo), (200, sample.narinfo.clone().into_bytes()));
}

/// A cache at a path that is a link, which can lead somewhere else later.
struct Linked {
    scratch: Scratch,
    daemon: Daemon,
}

impl Linked {
    fn new() -> Self {
        let scratch = Scratch::new();
        fs::create_dir(scratch.join("here")).expect("made");
        symlink(scratch.join("here"), scratch.join("cache")).expect("made");
        let daemon = Daemon::builder().dir(&scratch.join("cache")).start();
        Self { scratch, daemon }
    }

    fn lead_to(&self, target: &Path) {
        fs::remove_file(self.scratch.join("cache")).expect("it is there");
        symlink(target, self.scratch.join("cache")).expect("made");
    }
}

#[test]
fn readers_get_503_while_the_directory_is_on_another_disk() {
    let cache = Linked::new();
    let (stored, refused) = (sample(1, b"x"), sample(2, &[2; 200_000]));
    upload(&cache.daemon, &stored);
    assert_eq!(status(&cache.daemon, ABSENT), 404);
    let disk = Disk::new("size=8m");
    cache.lead_to(disk.path());
    cache.daemon.wait_until("it is seen", || status(&cache.daemon, ABSENT) == 503);
    for path in [ABSENT, &refused.narinfo_path, &refused.nar_path] {
        assert_eq!(status(&cache.daemon, path), 503, "{path}");
    }
    // A name that no object can have is absent wherever the disk is.
    assert_eq!(status(&cache.daemon, "/nar/x"), 404);
    assert_eq!(put(&cache.daemon, &refused.nar_path, &refused.nar), 503);
    assert_eq!(put(&cache.daemon, &refused.narinfo_path.replace("narinfo", "ls"), "{}"), 503);
    assert_eq!(status(&cache.daemon, "/health"), 503);
    assert_eq!(fs::read_dir(disk.path()).expect("it can be read").count(), 0);
    cache.daemon.wait_for_log("is on another file system than when the daemon started");
    let retry = Wire::to(&cache.daemon).request("GET", ABSENT, b"");
    assert_eq!((retry.status, retry.header("retry-after")), (503, "1"));

    // The right one is back, and no restart is needed.
    cache.lead_to(&cache.scratch.join("here"));
    cache.daemon.wait_until("it is seen", || status(&cache.daemon, ABSENT) == 404);
    serves(&cache.daemon, &stored);
    assert_eq!(objects(&cache.scratch.join("here")).len(), 2);
    upload(&cache.daemon, &refused);
    serves(&cache.daemon, &refused);
}

#[test]
fn a_disk_that_is_gone_is_not_replaced_by_the_one_under_its_mount_point() {
    let cache = Linked::new();
    let stored = sample(1, b"x");
    upload(&cache.daemon, &stored);
    // The directory is missing, and what is above it is on another disk.
    let disk = Disk::new("size=8m");
    fs::remove_file(cache.scratch.join("cache")).expect("it is there");
    fs::rename(cache.scratch.join("here"), cache.scratch.join("elsewhere")).expect("renamed");
    symlink(disk.path().join("missing"), cache.scratch.join("cache")).expect("made");
    cache.daemon.wait_until("it is seen", || status(&cache.daemon, ABSENT) == 503);
    // Longer than it takes to make a directory that was only removed.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(status(&cache.daemon, ABSENT), 503);
    }
    assert_eq!(put(&cache.daemon, &stored.nar_path, &stored.nar), 503);
    assert_eq!(fs::read_dir(disk.path()).expect("it can be read").count(), 0);
}

#[test]
fn a_wiped_directory_is_created_again_and_accepts_uploads_at_once() {
    let scratch = Scratch::new();
    let dir = scratch.join("a/cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let (before, after) = (sample(1, b"x"), sample(2, &[2; 200_000]));
    upload(&daemon, &before);
    for round in 0..2 {
        // With its parent the second time.
        let wiped = if round == 0 { &dir } else { &scratch.join("a") };
        fs::remove_dir_all(wiped).expect("it is there");
        // It waits until the directory is there again.
        upload(&daemon, &after);
        serves(&daemon, &after);
        for path in [&before.narinfo_path, &before.nar_path] {
            daemon.wait_until("it is gone for readers, too", || status(&daemon, path) == 404);
        }
        assert_eq!(assert_nothing_is_false(&dir), 1);
        let info = fs::read(dir.join("nix-cache-info")).expect("it was written again");
        assert_eq!(info, daemon.get("/nix-cache-info").1);
    }
    assert_eq!(status(&daemon, "/health"), 200);
}

#[test]
fn a_wiped_directory_is_created_again_by_reads_alone() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    fs::remove_dir_all(&dir).expect("it is there");
    // Until the directory is there again, a miss is an error and no 404.
    daemon.wait_until("it is made", || {
        let status = status(&daemon, ABSENT);
        assert!(status == 503 || dir.exists(), "{status} without a directory");
        status == 404
    });
    assert!(dir.join("nar").is_dir());
}

/// A copy of a cache's directory, as a backup has it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    fs::create_dir(to.join("nar")).expect("made");
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
    // It is known to be absent, and will not be.
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

    // It was found all the time, and that it is another one is seen as well.
    daemon.wait_until("the restored narinfo is served", || {
        daemon.get(&old.narinfo_path).1 == resigned.as_bytes()
    });
    for path in [&new.narinfo_path, &new.nar_path] {
        daemon.wait_until("what is not in the backup is absent", || status(&daemon, path) == 404);
    }
    serves(&daemon, &planted);
    upload(&daemon, &later);
    assert!(dir.join(&later.nar_path[1..]).exists());
    assert_eq!(objects(&scratch.join("before")).len(), 4, "something was stored there");
    assert_eq!(assert_nothing_is_false(&dir), 3);
}

#[test]
fn an_upload_is_not_acknowledged_in_a_directory_that_was_replaced_during_it() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let sample = sample(1, &[1; 300_000]);
    // That is staged, too.
    daemon.wait_for_log("wrote nix-cache-info");
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        sample.nar_path,
        sample.nar.len()
    ));
    wire.send_bytes(&sample.nar[..100_000]);
    daemon.wait_until("it is being staged", || {
        let staged = crate::support::audit::staging(&dir);
        staged.iter().any(|name| !name.ends_with('/'))
    });
    fs::rename(&dir, scratch.join("before")).expect("renamed");
    fs::create_dir(&dir).expect("made");
    wire.send_bytes(&sample.nar[100_000..]);
    assert_eq!(wire.answer().status, 503);
    assert_eq!(objects(&scratch.join("before")), [""; 0]);
    assert_eq!(objects(&dir), [""; 0]);
    upload(&daemon, &sample);
    serves(&daemon, &sample);
    assert_eq!(assert_nothing_is_false(&dir), 1);
}

#[test]
fn folders_in_the_directory_may_be_removed_at_any_time() {
    let daemon = Daemon::start();
    let folders: [&[&str]; 4] =
        [&[".nix-stored"], &["nar"], &[".nix-stored/staging"], &["nar", ".nix-stored"]];
    for (number, folders) in (1..).zip(folders) {
        for folder in folders {
            fs::remove_dir_all(daemon.dir().join(folder)).expect("it is there");
        }
        // One through memory, one through the staging folder.
        for sample in [sample(number, &[number]), sample(number + 100, &[number; 200_000])] {
            upload(&daemon, &sample);
            serves(&daemon, &sample);
        }
    }
    let old = sample(1, &[1]);
    assert_eq!(status(&daemon, &old.nar_path), 404, "it went with its folder");
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
            fs::create_dir(&dir).expect("made");
            gone.push(before);
            uploads.into_iter().flat_map(|upload| upload.join().expect("it ends")).collect()
        });
        // What is acknowledged was in the directory that was there then.
        for path in acknowledged {
            let there = gone.iter().chain([&dir]).any(|dir| dir.join(&path[1..]).exists());
            assert!(there, "{path} is nowhere");
        }
    }
    assert_eq!(put(&daemon, &sample(250, b"x").nar_path, &sample(250, b"x").nar), 201);
    assert_nothing_is_false(&dir);
}

#[test]
fn nix_uploads_and_substitutes_again_after_the_directory_was_wiped() {
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let nix = Nix::new();
    let paths = nix.add_tiny_files("wiped", 20);
    nix.copy_to(daemon.url(), &paths);
    fs::remove_dir_all(&dir).expect("it is there");
    // Another machine, which does not remember what the cache had.
    let other = Nix::new();
    let paths = other.add_tiny_files("wiped", 20);
    other.copy_to(daemon.url(), &paths);
    assert_eq!(assert_nothing_is_false(&dir), 20);
    let reader = Nix::new();
    reader.copy_from(daemon.url(), &paths);
    reader.assert_has_the_same(&other, &paths);
}
