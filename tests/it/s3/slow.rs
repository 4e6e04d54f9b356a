//! Slow uploads into a bucket hold no memory of others, and are stored completely.

use std::time::{Duration, Instant};

use super::server::{TestServer, get, on_every_server, over, upload};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::slow_uploads::SlowUploads;

/// The limit for an upload of a client that is not slow.
const TIMEOUT: Duration = Duration::from_secs(10);

on_every_server! {
    slow_uploads_hold_no_memory_for_parts
    slow_uploads_of_unknown_length_hold_no_memory_for_parts
    #[cfg(feature = "upstream")]
    nars_of_a_slow_upstream_hold_no_memory_for_parts
    an_upload_that_was_slow_in_any_part_is_stored_completely
}

fn large(number: u8, length: usize) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(length))
}

/// The number of unlinked files that a daemon has open.
fn nameless_files(daemon: &Daemon) -> usize {
    let folder = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    let files = std::fs::read_dir(folder).expect("the daemon is there").flatten();
    let is_nameless = |link: &std::path::PathBuf| link.to_string_lossy().ends_with("(deleted)");
    files.flat_map(|file| std::fs::read_link(file.path())).filter(is_nameless).count()
}

/// Checks that uploads of other clients are not delayed.
#[track_caller]
fn assert_others_can_upload(daemon: &Daemon) {
    for number in 100..103 {
        let started = Instant::now();
        upload(daemon, &large(number, 400_000));
        assert!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
    }
}

fn slow_uploads_hold_no_memory_for_parts(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    let slow = large(1, 300_000);
    // More than the memory for parts.
    let bodies = vec![(&*slow.nar_path, &*slow.nar); 80];
    let slow_uploads = SlowUploads::start(&daemon, &bodies, 100_000);
    assert_others_can_upload(&daemon);
    let responses = slow_uploads.finish();
    assert!(responses.iter().all(|response| response.status == 200 || response.status == 201));
    assert_eq!(get(&daemon, &slow.nar_path).body, slow.nar);
}

fn slow_uploads_of_unknown_length_hold_no_memory_for_parts(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    let slow = large(1, 300_000);
    // Parts have 16 MiB here, so these uploads would use all memory for parts.
    let bodies = vec![(&*slow.nar_path, &*slow.nar); 16];
    let slow_uploads = SlowUploads::start_chunked(&daemon, &bodies, 100_000);
    assert_others_can_upload(&daemon);
    let responses = slow_uploads.finish();
    assert!(responses.iter().all(|response| response.status == 200 || response.status == 201));
    assert_eq!(get(&daemon, &slow.nar_path).body, slow.nar);
}

/// More than the memory for parts.
#[cfg(feature = "upstream")]
const FETCHES: u8 = 66;

#[cfg(feature = "upstream")]
fn nars_of_a_slow_upstream_hold_no_memory_for_parts(server: &TestServer) {
    use crate::support::scripted_upstream::ScriptedUpstream;
    use crate::support::wire::Wire;

    let slow: Vec<Sample> = (1..=FETCHES).map(|number| large(number, 300_000)).collect();
    let upstream = ScriptedUpstream::start();
    for sample in &slow {
        upstream.has(&sample.narinfo_path, sample.narinfo.as_bytes());
        let nar = sample.nar.clone();
        upstream.on(&sample.nar_path, move |exchange| {
            exchange.head(0, nar.len());
            exchange.raw(&nar[..100_000]);
            for byte in &nar[100_000..] {
                std::thread::park_timeout(Duration::from_millis(100));
                if !exchange.raw(std::slice::from_ref(byte)) {
                    break;
                }
            }
        });
    }
    let mirror = over(&server.bucket()).env("NIX_STORED_UPSTREAMS", &upstream.url()).start();
    // Any client with read access can make the daemon fetch.
    let fetches: Vec<Wire> = slow
        .iter()
        .map(|sample| {
            assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
            let mut wire = Wire::to(&mirror);
            wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", sample.nar_path));
            assert_eq!(wire.head().status, 200);
            wire
        })
        .collect();
    assert_others_can_upload(&mirror);
    drop(fetches);
}

fn an_upload_that_was_slow_in_any_part_is_stored_completely(server: &TestServer) {
    let bucket = server.bucket();
    let daemon = over(&bucket).start();
    // Parts have 5 MiB: slow in the first, at its end, in the second, and in the last.
    let nar = large(2, 12 << 20);
    for at in [100, (5 << 20) - 1, 5 << 20, 7 << 20, nar.nar.len() - 20] {
        let slow_uploads = SlowUploads::start(&daemon, &[(&nar.nar_path, &nar.nar)], at);
        daemon.wait_until("the part is kept in a file", || nameless_files(&daemon) > 0);
        let status = slow_uploads.finish()[0].status;
        assert!(status == 200 || status == 201, "{at}: {status}");
        assert!(get(&daemon, &nar.nar_path).body == nar.nar, "{at}");
    }
    assert_eq!(server.unfinished(&bucket), 0);
}
