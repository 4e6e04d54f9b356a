//! A daemon is killed during an upload: the upload is not visible, and its parts are removed.

use std::time::Duration;

use super::server::{TestServer, assert_consistent, at, get, on_every_server, over, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::s3_bucket::Bucket;
use crate::support::wire::Wire;

on_every_server! {
    a_running_upload_of_a_killed_daemon_is_not_visible
    acknowledged_uploads_survive_a_kill
}

fn large() -> Sample {
    sample(1, &Noise::new(9).bytes(30 << 20))
}

/// Kills a daemon that has sent some parts of an upload.
fn kill_in_the_middle(server: &TestServer, bucket: &Bucket, daemon: Daemon, sample: &Sample) {
    let mut wire = Wire::to(&daemon);
    let length = sample.nar.len();
    let path = &sample.nar_path;
    wire.send(&format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
    wire.send_bytes(&sample.nar[..length / 2]);
    daemon.wait_until("a part is sent", || server.unfinished(bucket) > 0);
    daemon.kill();
}

fn a_running_upload_of_a_killed_daemon_is_not_visible(server: &TestServer) {
    let bucket = server.bucket();
    let (sample, before) = (large(), over(&bucket).start());
    kill_in_the_middle(server, &bucket, before, &sample);
    let daemon = over(&bucket).start();
    assert_eq!(get(&daemon, &sample.nar_path).status, 404);
    assert!(bucket.keys().iter().all(|key| !key.starts_with("nar/")));
    upload(&daemon, &sample);
    assert_eq!(assert_consistent(&bucket), 1);
}

fn acknowledged_uploads_survive_a_kill(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    let samples: Vec<Sample> =
        (1..20).map(|number| sample(number, &vec![number; 70_000])).collect();
    for sample in &samples {
        upload(&daemon, sample);
    }
    daemon.kill();
    assert_eq!(assert_consistent(&bucket), samples.len());
    let daemon = over(&bucket).start();
    for sample in &samples {
        assert!(get(&daemon, &sample.nar_path).body == sample.nar);
    }
}

/// Only Garage can list unfinished uploads, so only there are they removed.
#[test]
#[ignore = "needs Garage: tests/run --garage"]
fn abandoned_uploads_of_a_killed_daemon_are_aborted_only_when_they_are_old() {
    let server = TestServer::garage();
    let bucket = server.bucket();
    let (sample, before) = (large(), over(&bucket).start());
    kill_in_the_middle(&server, &bucket, before, &sample);
    assert_eq!(bucket.unfinished(), [sample.nar_path[1..].to_owned()]);
    // The upload may belong to another daemon.
    let patient = over(&bucket).start();
    upload(&patient, &crate::support::objects::sample(2, b"two"));
    assert_eq!(bucket.unfinished().len(), 1);
    drop(patient);
    // The time of an upload has whole seconds.
    std::thread::sleep(Duration::from_secs(2));
    let daemon = at(&bucket, &format!("{}&abandoned-after=1s", bucket.url())).start();
    daemon.wait_for_log("aborted 1 unfinished upload");
    assert_eq!(bucket.unfinished(), [""; 0]);
}
