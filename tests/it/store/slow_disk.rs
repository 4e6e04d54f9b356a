//! A slow disk delays only requests that read from it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

use crate::support::daemon::Daemon;
use crate::support::objects::sample;
use crate::support::wire::Wire;

/// A control group whose processes read one megabyte per second from one disk.
struct Throttle(PathBuf);

impl Throttle {
    fn new(on_the_disk_of: &Path) -> Self {
        let device = std::fs::metadata(on_the_disk_of).expect("present").dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let name = format!("nix-stored-test-{}", std::process::id());
        // Control groups version 1, and version 2.
        let one = PathBuf::from("/sys/fs/cgroup/blkio").join(&name);
        let two = PathBuf::from("/sys/fs/cgroup").join(&name);
        let (group, file, limit) = if Path::new("/sys/fs/cgroup/blkio").exists() {
            (one, "blkio.throttle.read_bps_device", format!("{major}:{minor} 1048576"))
        } else {
            (two, "io.max", format!("{major}:{minor} rbps=1048576"))
        };
        std::fs::create_dir(&group).expect("this test needs root and control groups");
        let throttle = Self(group);
        std::fs::write(throttle.0.join(file), limit).expect("this test needs a disk to throttle");
        throttle
    }

    fn hold(&self, daemon: &Daemon) {
        let pid = daemon.pid().as_raw_nonzero().to_string();
        std::fs::write(self.0.join("cgroup.procs"), pid).expect("the process is moved");
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // The daemon has ended; the kernel may need a moment to remove it.
        for _ in 0..10_000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Removes a file from the page cache.
fn evict(file: &Path) {
    let file = File::open(file).expect("present");
    file.sync_all().expect("synced");
    let is_cold = || {
        let mut byte = [0];
        let mut slices = [IoSliceMut::new(&mut byte)];
        let read = rustix::io::preadv2(&file, &mut slices, 4_000_000, ReadWriteFlags::NOWAIT);
        read == Err(Errno::AGAIN)
    };
    for _ in 0..1000 {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .expect("the page cache is dropped");
        if is_cold() {
            return;
        }
    }
    panic!("the file stays in the page cache");
}

#[test]
fn a_cold_nar_on_a_slow_disk_delays_no_other_request() {
    let cold = sample(1, &(0..8_000_000u32).map(|at| (at / 7) as u8).collect::<Vec<_>>());
    let warm = sample(2, &[7; 500_000]);
    // Dropped after the daemon, which is in the group.
    let throttle = Throttle::new(Path::new(env!("CARGO_TARGET_TMPDIR")));
    // One worker thread: if it waits for the disk, all requests do.
    let daemon = Daemon::builder().cpus("0").start();
    for sample in [&cold, &warm] {
        assert_eq!(Wire::to(&daemon).request("PUT", &sample.nar_path, &sample.nar).status, 201);
        assert_eq!(
            Wire::to(&daemon)
                .request("PUT", &sample.narinfo_path, sample.narinfo.as_bytes())
                .status,
            201
        );
    }
    assert!(Wire::to(&daemon).request("GET", &warm.nar_path, b"").body == warm.nar);
    evict(&daemon.dir().join(&cold.nar_path[1..]));
    throttle.hold(&daemon);

    let mut slow = Wire::to(&daemon);
    slow.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", cold.nar_path));
    let slow = std::thread::spawn(move || slow.response());
    let mut others = Wire::to(&daemon);
    for _ in 0..100 {
        assert_eq!(others.request("GET", &warm.narinfo_path, b"").status, 200);
        assert!(others.request("GET", &warm.nar_path, b"").body == warm.nar);
        assert_eq!(others.request("GET", "/nix-cache-info", b"").status, 200);
    }
    // Eight megabytes take eight seconds. Three hundred responses that each waited for one megabyte
    // would take minutes.
    assert!(!slow.is_finished(), "the slow one was done before the others");
    let received = slow.join().expect("a response arrives");
    assert!(received.body == cold.nar);
}
