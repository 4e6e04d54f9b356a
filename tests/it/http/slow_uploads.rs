//! Slow uploads and slow upstreams delay no other request.

use std::time::{Duration, Instant};

use nix_stored::nix::Compression;

use crate::support::cache_dir::{assert_consistent, staging};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::slow_uploads::SlowUploads;
use crate::support::wire::Wire;

/// The limit for requests that are not slow. They usually take a moment; before the fix they took
/// forever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A path with a compressed NAR that is too large for one step.
fn large(number: u8) -> Sample {
    sample(number, &Noise::new(number.into()).bytes(300_000)).packed(Compression::Zstd)
}

/// Uploads a path. Returns the duration of the slower request.
#[track_caller]
fn upload(daemon: &Daemon, sample: &Sample) -> Duration {
    let put = |path: &str, body: &[u8]| {
        let started = Instant::now();
        let response = Wire::to(daemon).request("PUT", path, body);
        assert_eq!(response.status, 201, "{path}: {}", response.text());
        started.elapsed()
    };
    put(&sample.nar_path, &sample.nar).max(put(&sample.narinfo_path, sample.narinfo.as_bytes()))
}

#[test]
fn slow_uploads_hold_no_decoder() {
    let daemon = Daemon::start();
    // More uploads than there are decoders.
    let slow: Vec<Sample> = (1..=40).map(large).collect();
    let mut bodies: Vec<(&str, &[u8])> =
        slow.iter().map(|sample| (&*sample.nar_path, &*sample.nar)).collect();
    // The file matches its name, but is not a NAR.
    let bad = sample(50, b"").with_file(Compression::Xz, Noise::new(50).bytes(300_000));
    bodies.push((&bad.nar_path, &bad.nar));
    let slow_uploads = SlowUploads::start(&daemon, &bodies, 200_000);
    for number in 100..104 {
        let small = sample(number + 50, &[number; 100]).packed(Compression::Xz);
        for sample in [large(number), small] {
            let took = upload(&daemon, &sample);
            assert!(took < TIMEOUT, "{took:?}");
        }
    }
    let responses = slow_uploads.finish();
    let (bad, good) = responses.split_last().expect("not empty");
    assert!(good.iter().all(|response| response.status == 201), "{good:?}");
    assert_eq!(bad.status, 422, "{}", bad.text());
    assert!(bad.text().contains("not valid xz data"), "{}", bad.text());
    for sample in &slow {
        let response =
            Wire::to(&daemon).request("PUT", &sample.narinfo_path, sample.narinfo.as_bytes());
        assert_eq!(response.status, 201, "{}", response.text());
    }
    assert_eq!(assert_consistent(daemon.dir()), slow.len() + 8);
}

#[test]
fn slow_uploads_hold_no_permit_and_no_thread() {
    let daemon = Daemon::start();
    let cold = sample(1, &Noise::new(1).bytes(1_000_000));
    assert_eq!(Wire::to(&daemon).request("PUT", &cold.nar_path, &cold.nar).status, 201);
    // More than the permits for large uploads, and more than the threads of the blocking pool.
    let slow = sample(2, &Noise::new(2).bytes(300_000));
    let bodies = vec![(&*slow.nar_path, &*slow.nar); 600];
    let _slow_uploads = SlowUploads::start(&daemon, &bodies, 1000);
    daemon.wait_until("all uploads are being received", || daemon.open_files() > 1200);
    let started = Instant::now();
    let took = upload(&daemon, &large(3));
    assert!(took < TIMEOUT, "{took:?}");
    assert_eq!(Wire::to(&daemon).request("GET", "/health", b"").status, 200);
    assert_eq!(Wire::to(&daemon).request("GET", &cold.nar_path, b"").body, cold.nar);
    assert!(started.elapsed() < 2 * TIMEOUT, "{:?}", started.elapsed());
}

#[test]
fn slow_uploads_of_side_files_and_narinfos_hold_no_decoder_and_no_permit() {
    let daemon = Daemon::start();
    let log = "/log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv";
    let text = vec![b'x'; 300_000];
    let narinfo = large(4);
    let long = format!("{}X-Long: {}\n", narinfo.narinfo, "x".repeat(300_000));
    let bodies = [vec![(log, &*text); 300], vec![(&*narinfo.narinfo_path, long.as_bytes()); 300]];
    let slow_uploads = SlowUploads::start(&daemon, &bodies.concat(), 100_000);
    daemon.wait_until("all uploads are being received", || daemon.open_files() > 1200);
    let took = upload(&daemon, &large(5));
    assert!(took < TIMEOUT, "{took:?}");
    drop(slow_uploads);
    daemon.wait_until("no file is staged", || staging(daemon.dir()).len() <= 1);
}

#[cfg(feature = "upstream")]
#[test]
fn nars_of_a_slow_upstream_hold_no_decoder_even_without_readers() {
    use crate::support::scripted_upstream::ScriptedUpstream;

    let slow: Vec<Sample> = (1..=40).map(large).collect();
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
    let mirror = Daemon::builder().env("NIX_STORED_UPSTREAMS", &upstream.url()).start();
    for sample in &slow {
        assert_eq!(Wire::to(&mirror).request("GET", &sample.narinfo_path, b"").status, 200);
        let mut wire = Wire::to(&mirror);
        wire.send(&format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", sample.nar_path));
        assert_eq!(wire.head().status, 200);
    }
    for number in 100..104 {
        let took = upload(&mirror, &large(number));
        assert!(took < TIMEOUT, "{took:?}");
    }
}

#[cfg(feature = "upstream")]
#[test]
fn narinfo_uploads_that_wait_for_an_upstream_hold_no_lock() {
    use crate::support::scripted_upstream::{Exchange, ScriptedUpstream};

    let upstream = ScriptedUpstream::start();
    upstream.otherwise(|exchange| exchange.status(404, ""));
    // More than the number of locks.
    let small = |number| sample(number, &[number; 10]).packed(Compression::Xz);
    let waiting: Vec<Sample> = (1..=150).map(small).collect();
    for sample in &waiting {
        upstream.on(&sample.nar_path, Exchange::hang);
    }
    let url = format!("{}?timeout=60s", upstream.url());
    let mirror = Daemon::builder().env("NIX_STORED_UPSTREAMS", &url).start();
    let mut wires = Vec::new();
    for sample in &waiting {
        let mut wire = Wire::to(&mirror);
        let (path, length) = (&sample.narinfo_path, sample.narinfo.len());
        wire.send(&format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        wire.send(&sample.narinfo);
        wires.push(wire);
    }
    let asks =
        || upstream.requests().iter().filter(|request| request.target.starts_with("/nar/")).count();
    mirror.wait_until("the mirror waits for the upstream", || asks() > 10);
    for number in 200..210 {
        let took = upload(&mirror, &large(number));
        assert!(took < TIMEOUT, "{took:?}");
    }
}

#[cfg(feature = "upstream")]
#[test]
fn nars_that_an_upstream_does_not_answer_for_delay_no_other_nar() {
    use crate::support::scripted_upstream::{Exchange, ScriptedUpstream};

    let (hanging, other) = (ScriptedUpstream::start(), ScriptedUpstream::start());
    let wanted: Vec<Sample> = (201..206).map(large).collect();
    for sample in &wanted {
        other.has(&sample.narinfo_path, sample.narinfo.as_bytes());
        other.has(&sample.nar_path, &sample.nar);
    }
    let urls = format!("{}?timeout=60s {}", hanging.url(), other.url());
    let mirror = Daemon::builder().env("NIX_STORED_UPSTREAMS", &urls).start();
    for sample in &wanted {
        assert_eq!(Wire::to(&mirror).request("GET", &sample.narinfo_path, b"").status, 200);
    }
    hanging.otherwise(Exchange::hang);
    // Many more names than locks, so that names share locks.
    let absent: Vec<Wire> = (0..400)
        .map(|number: u32| {
            let hash = nix_stored::nix::Sha256Hash::of(&number.to_le_bytes()).to_nix32();
            let mut wire = Wire::to(&mirror);
            wire.send(&format!("GET /nar/{hash}.nar.xz HTTP/1.1\r\nHost: x\r\n\r\n"));
            wire
        })
        .collect();
    let asks =
        || hanging.requests().iter().filter(|request| request.target.starts_with("/nar/")).count();
    mirror.wait_until("the upstream gets the requests", || asks() >= 64);
    for sample in &wanted {
        let started = Instant::now();
        assert_eq!(Wire::to(&mirror).request("GET", &sample.nar_path, b"").body, sample.nar);
        assert!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
    }
    drop(absent);
}
