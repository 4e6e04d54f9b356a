//! A directory that becomes read-only while the daemon runs, as after disk errors.

use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::objects::{ONE_OF_EACH, sample};
use crate::support::wire::Wire;

#[test]
fn a_directory_that_turns_read_only_is_served_and_accepts_uploads_again_later() {
    let mut disk = Disk::new("size=8m");
    let daemon = Daemon::builder().dir(&disk.path().join("cache")).start();
    let (before, during) = (sample(1, &[1; 100_000]), sample(2, &[2; 100_000]));
    let put = |path: &str, body: &[u8]| Wire::to(&daemon).request("PUT", path, body);
    assert_eq!(put(&before.nar_path, &before.nar).status, 201);
    assert_eq!(put(&before.narinfo_path, before.narinfo.as_bytes()).status, 201);
    let serves_what_was_there = || {
        let nar = Wire::to(&daemon).request("GET", &before.nar_path, b"");
        assert!(nar.status == 200 && nar.body == before.nar, "{}", nar.head);
        let narinfo = Wire::to(&daemon).request("GET", &before.narinfo_path, b"");
        assert_eq!((narinfo.status, narinfo.text()), (200, before.narinfo.clone()));
        assert_eq!(Wire::to(&daemon).request("HEAD", &during.nar_path, b"").status, 404);
    };

    disk.remount("ro");
    serves_what_was_there();
    let side_files =
        ONE_OF_EACH.iter().filter(|path| path.ends_with(".ls") || path.starts_with("/log/"));
    let uploads =
        side_files.map(|path| (*path, &b"{}"[..])).chain([(&*during.nar_path, &*during.nar)]);
    for (path, body) in uploads {
        let response = put(path, body);
        assert_eq!(response.status, 500, "{} {}", response.head, response.text());
        // The response refers to the log, which has the details.
        assert!(response.text().contains("log"), "{}", response.text());
        assert!(!response.text().contains("Read-only"), "{}", response.text());
        let logged = daemon.wait_for_log(path);
        assert!(logged.contains("Read-only file system"), "{logged}");
    }
    // Nix before 2.34 can repeat an upload only if it is refused before its body.
    let mut wire = Wire::to(&daemon);
    wire.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        during.nar_path,
        during.nar.len()
    ));
    assert_eq!(wire.head().status, 500);
    serves_what_was_there();

    disk.remount("rw");
    serves_what_was_there();
    assert_staging_is_empty(daemon.dir());
    assert_eq!(put(&during.nar_path, &during.nar).status, 201);
    assert_eq!(put(&during.narinfo_path, during.narinfo.as_bytes()).status, 201);
    assert_eq!(Wire::to(&daemon).request("GET", &during.nar_path, b"").body, during.nar);
    assert_eq!(assert_consistent(daemon.dir()), 2);
    assert_staging_is_empty(daemon.dir());
}
