//! Temporary files cannot be written, or fill their disk: the daemon works without them.

use crate::s3::server::{TestServer, assert_consistent, get, over};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;
use crate::support::scripted_upstream::{Gate, ScriptedUpstream};
use crate::support::wire::Wire;

const NOWHERE: &str = "/nonexistent/temporary";

fn large(number: u8) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(6 << 20))
}

/// A mirror with its cache in a bucket, and this directory for temporary files.
fn mirror(bucket: &Bucket, upstream: &ScriptedUpstream, temporary: &str) -> Daemon {
    over(bucket).env("TMPDIR", temporary).env("NIX_STORED_UPSTREAMS", &upstream.url()).start()
}

#[test]
fn an_upstreams_nars_are_served_without_temporary_files() {
    let server = TestServer::folder();
    let (bucket, sample) = (server.bucket(), large(1));
    let upstream = ScriptedUpstream::with(&[&sample]);
    let mirror = mirror(&bucket, &upstream, NOWHERE);
    let line = mirror.wait_for_log("cannot write temporary files");
    assert!(line.contains(NOWHERE) && line.contains("TMPDIR"), "{line}");
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    for _ in 0..2 {
        let nar = get(&mirror, &sample.nar_path);
        assert_eq!((nar.status, nar.body == sample.nar), (200, true));
    }
    assert_eq!(upstream.count(&sample.nar_path), 1);
    assert_eq!(assert_consistent(&bucket), 1);
}

#[test]
fn a_full_disk_for_temporary_files_stops_no_reader() {
    let (server, disk) = (TestServer::folder(), Disk::new("size=1m"));
    let (bucket, sample) = (server.bucket(), large(1));
    let (upstream, gate) = (ScriptedUpstream::with(&[&sample]), Gate::default());
    let (opened, nar) = (gate.clone(), sample.nar.clone());
    upstream.on(&sample.nar_path, move |exchange| {
        exchange.head(0, nar.len());
        exchange.raw(&nar[..500_000]);
        opened.wait(1);
        exchange.raw(&nar[500_000..]);
    });
    let temporary = disk.path().to_str().expect("a valid path");
    let mirror = mirror(&bucket, &upstream, temporary);
    let request =
        format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", sample.nar_path);
    // One client reads what fits on the disk, and the rest with the others.
    let mut early = Wire::to(&mirror);
    early.send(&request);
    assert_eq!(early.head().status, 200);
    gate.open();
    mirror.wait_for_log("No space left on device");
    let late = get(&mirror, &sample.nar_path);
    assert!(late.body == sample.nar, "{} bytes", late.body.len());
    assert!(early.rest() == sample.nar);
    assert_eq!(upstream.count(&sample.nar_path), 1);
}

#[test]
fn a_slow_upload_stays_in_memory() {
    let server = TestServer::folder();
    let (bucket, sample) = (server.bucket(), large(1));
    let daemon = over(&bucket).env("TMPDIR", NOWHERE).start();
    let mut slow = Wire::to(&daemon);
    let length = sample.nar.len();
    slow.send(&format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n",
        sample.nar_path
    ));
    slow.send_bytes(&sample.nar[..300_000]);
    // The transfer is slow now, because no bytes have arrived for a second.
    daemon.wait_for_log("stays in memory");
    slow.send_bytes(&sample.nar[300_000..]);
    assert_eq!(slow.response().status, 201);
    let put = Wire::to(&daemon).request("PUT", &sample.narinfo_path, sample.narinfo.as_bytes());
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(assert_consistent(&bucket), 1);
}
