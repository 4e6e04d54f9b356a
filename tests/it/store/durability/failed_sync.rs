//! A failed sync of a directory: refused objects are not served as stored, and nothing that needs the directory is
//! acknowledged until a sync succeeds.

use std::path::Path;

use crate::support::daemon::Daemon;
use crate::support::injection::Injection;
use crate::support::objects::{Sample, sample};
use crate::support::trace::Call;
use crate::support::wire::Wire;

fn put(daemon: &Daemon, path: &str, body: impl AsRef<[u8]>) -> u16 {
    Wire::to(daemon).request("PUT", path, body.as_ref()).status
}

fn status(daemon: &Daemon, method: &str, path: &str) -> u16 {
    Wire::to(daemon).request(method, path, b"").status
}

/// A daemon that has already written its files of the start.
fn start() -> Daemon {
    let daemon = Daemon::start();
    daemon.wait_for_log("wrote nix-cache-info");
    daemon
}

/// Makes syncs of a directory fail.
fn fail_syncs(daemon: &Daemon, folder: &Path) -> Injection {
    Injection::failing(daemon.pid(), "fsync", "EIO", &[folder])
}

fn samples(from: u8) -> [Sample; 3] {
    // One is collected in memory, one is staged, one is synced before the commit.
    [(from, 10), (from + 1, 200_000), (from + 2, 9_000_000)]
        .map(|(number, length)| sample(number, &vec![number; length]))
}

#[test]
fn a_refused_nar_is_not_reported_present_and_its_narinfo_is_refused_until_a_sync_succeeds() {
    let daemon = start();
    let nars = daemon.dir().join("nar").canonicalize().expect("present");
    let [small, medium, large] = samples(1);
    let broken = fail_syncs(&daemon, &nars);
    // The first object is renamed, and its sync fails; the others are not renamed.
    for (sample, (found, taken)) in
        [(&small, (500, 500)), (&medium, (404, 422)), (&large, (404, 422))]
    {
        assert_eq!(put(&daemon, &sample.nar_path, &sample.nar), 500);
        // Long enough for several retries of the daemon.
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(1100) {
            for method in ["HEAD", "GET"] {
                assert_eq!(status(&daemon, method, &sample.nar_path), found);
            }
        }
        assert_eq!(put(&daemon, &sample.narinfo_path, &sample.narinfo), taken);
        assert_eq!(status(&daemon, "HEAD", &sample.narinfo_path), 404);
    }
    // Objects in other directories are stored.
    assert_eq!(put(&daemon, &small.narinfo_path.replace("narinfo", "ls"), "{}"), 201);
    daemon.wait_for_log("Input/output error");
    drop(broken);

    // A lookup makes the daemon retry the sync.
    daemon
        .wait_until("the directory is synced", || status(&daemon, "HEAD", &small.nar_path) == 200);
    // So does an upload, before the narinfo is renamed.
    let broken = fail_syncs(&daemon, &nars);
    assert_eq!(put(&daemon, &medium.nar_path, &medium.nar), 500);
    drop(broken);
    let watching = Injection::watching(daemon.pid(), "fsync,renameat2", &[&nars, daemon.dir()]);
    daemon.wait_until("the upload is accepted", || {
        put(&daemon, &medium.narinfo_path, &medium.narinfo) == 201
    });
    let calls = watching.stop();
    let named = calls.iter().find(|call| {
        call.path(3).is_some_and(|name| name == medium.narinfo_path[1..]) && call.succeeded()
    });
    let named = named.unwrap_or_else(|| panic!("it did not get its name: {calls:?}"));
    let synced = calls.iter().any(|call| {
        call.name == "fsync"
            && call.descriptor(0).map(Path::new) == Some(&nars)
            && call.succeeded()
            && call.end < named.begin
    });
    assert!(synced, "{calls:?}");
    assert_eq!(put(&daemon, &large.nar_path, &large.nar), 201);
    assert_eq!(put(&daemon, &large.narinfo_path, &large.narinfo), 201);
}

#[test]
fn a_refused_narinfo_is_acknowledged_only_after_a_sync() {
    let daemon = start();
    let root = daemon.dir().canonicalize().expect("present");
    let sample = sample(1, b"x");
    assert_eq!(put(&daemon, &sample.nar_path, &sample.nar), 201);
    let broken = fail_syncs(&daemon, &root);
    for _ in 0..3 {
        // At the second upload the object exists, and would not be stored again.
        assert_eq!(put(&daemon, &sample.narinfo_path, &sample.narinfo), 500);
        assert_eq!(status(&daemon, "GET", &sample.narinfo_path), 500);
    }
    drop(broken);
    let watching = Injection::watching(daemon.pid(), "fsync", &[&root]);
    daemon.wait_until("the upload is accepted", || {
        put(&daemon, &sample.narinfo_path, &sample.narinfo) == 200
    });
    assert!(watching.stop().iter().any(Call::succeeded));
    assert_eq!(status(&daemon, "GET", &sample.narinfo_path), 200);
}

#[test]
fn a_directory_that_was_made_and_not_synced_into_its_parent_is_synced_later() {
    let daemon = start();
    let root = daemon.dir().canonicalize().expect("present");
    let log = "/log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv";
    let broken = fail_syncs(&daemon, &root);
    assert_eq!(put(&daemon, log, "it was built"), 500);
    assert!(daemon.dir().join("log").is_dir());
    assert_eq!(put(&daemon, log, "it was built"), 500);
    assert_eq!(status(&daemon, "GET", log), 404);
    drop(broken);
    let watching = Injection::watching(daemon.pid(), "fsync", &[&root]);
    assert_eq!(put(&daemon, log, "it was built"), 201);
    assert!(watching.stop().iter().any(Call::succeeded), "the root was not synced");
}

#[test]
fn the_file_system_is_synced_where_directories_cannot_be() {
    let daemon = start();
    let root = daemon.dir().canonicalize().expect("present");
    let nars = root.join("nar");
    let paths: [&Path; 2] = [&root, &nars];
    let unknown = Injection::failing(daemon.pid(), "fsync", "EINVAL", &paths);
    let sample = sample(1, b"x");
    assert_eq!(put(&daemon, &sample.nar_path, &sample.nar), 201);
    assert_eq!(put(&daemon, &sample.narinfo_path, &sample.narinfo), 201);
    assert_eq!(unknown.stop().iter().filter(|call| !call.succeeded()).count(), 2);
}

#[test]
fn names_created_by_a_killed_daemon_are_synced_at_the_next_start() {
    use crate::support::trace::TracedDaemon;

    let scratch = crate::support::scratch::Scratch::new();
    let root = scratch.join("cache");
    drop(Daemon::builder().dir(&root).start());
    let sample = sample(1, b"x");
    // The state after a daemon was killed between the rename and the sync.
    std::fs::write(root.join(&sample.nar_path[1..]), &sample.nar).expect("written");
    let daemon = TracedDaemon::start(&root);
    let (trace, _) = daemon.stop();
    let root = root.canonicalize().expect("present");
    for folder in [root.join("nar"), root] {
        let synced = trace.iter().any(|call| {
            call.name == "fsync"
                && call.descriptor(0).map(Path::new) == Some(&folder)
                && call.succeeded()
        });
        assert!(synced, "{} was not synced", folder.display());
    }
}
