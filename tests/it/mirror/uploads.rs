//! Uploads to a cache with upstreams: the paths of an upstream count as present.

use super::mirror_of;
use crate::support::cache_dir::assert_consistent;
use crate::support::objects::{Sample, sample};
use crate::support::scripted_upstream::{Gate, RecordedRequest, ScriptedUpstream};
use crate::support::wire::Wire;

/// The sample with a reference to another.
fn referring(sample: &Sample, to: &Sample) -> Sample {
    let name = to.store_path.trim_start_matches("/nix/store/");
    let narinfo = sample.narinfo.replace("References: \n", &format!("References: {name}\n"));
    Sample { narinfo, ..sample.clone() }
}

#[test]
fn a_nar_that_an_upstream_has_need_not_be_uploaded() {
    let sample = sample(1, &[7; 100_000]);
    let upstream = ScriptedUpstream::start();
    upstream.has(&sample.nar_path, &sample.nar);
    let mirror = mirror_of(&[&upstream.url()]).start();
    let mut wire = Wire::to(&mirror);
    // Nix looks for a NAR first, and does not upload a present one.
    assert_eq!(wire.request("HEAD", &sample.nar_path, b"").status, 200);
    let narinfo = sample.narinfo.as_bytes();
    assert_eq!(Wire::to(&mirror).request("PUT", &sample.narinfo_path, narinfo).status, 201);
    upstream.stop();
    assert_eq!(mirror.get(&sample.nar_path), (200, sample.nar.clone()));
    assert_eq!(assert_consistent(mirror.dir()), 1);
}

#[test]
fn a_reference_that_an_upstream_has_counts_as_present() {
    let (theirs, absent) = (sample(1, b"theirs"), sample(2, b"absent"));
    let upstream = ScriptedUpstream::with(&[&theirs]);
    let mirror = mirror_of(&[&upstream.url()]).env("NIX_STORED_REQUIRE_REFERENCES", "1").start();
    for (number, to, status) in [(3, &theirs, 201), (4, &absent, 422)] {
        let sample = referring(&sample(number, &[number]), to);
        let mut wire = Wire::to(&mirror);
        assert_eq!(wire.request("PUT", &sample.nar_path, &sample.nar).status, 201);
        let narinfo = sample.narinfo.as_bytes();
        let put = wire.request("PUT", &sample.narinfo_path, narinfo);
        assert_eq!(put.status, status, "{}", put.text());
    }
}

#[test]
fn a_mirrored_path_may_lack_its_references() {
    let sample = referring(&sample(1, b"some"), &sample(2, b"absent"));
    let upstream = ScriptedUpstream::with(&[&sample]);
    let mirror = mirror_of(&[&upstream.url()]).env("NIX_STORED_REQUIRE_REFERENCES", "1").start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 200);
    assert_eq!(mirror.get(&sample.nar_path), (200, sample.nar.clone()));
    assert_eq!(assert_consistent(mirror.dir()), 1);
}

#[test]
fn head_of_a_nar_sends_only_a_head_request_to_the_upstream() {
    let sample = sample(1, &[7; 100_000]);
    let upstream = ScriptedUpstream::start();
    upstream.has(&sample.nar_path, &sample.nar);
    let mirror = mirror_of(&[&upstream.url()]).start();
    let head = Wire::to(&mirror).request("HEAD", &sample.nar_path, b"");
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, sample.nar.len().to_string().as_str())
    );
    let request = upstream.requests();
    assert!(request.iter().all(RecordedRequest::is_head), "{request:?}");
}

#[test]
fn an_upstream_without_head_gets_a_get_request() {
    let sample = sample(1, &[7; 100_000]);
    let upstream = ScriptedUpstream::start();
    let nar = sample.nar.clone();
    upstream.on(&sample.nar_path, move |exchange| match exchange.request.is_head() {
        true => exchange.status(405, ""),
        false => exchange.send(&nar),
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let head = Wire::to(&mirror).request("HEAD", &sample.nar_path, b"");
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, sample.nar.len().to_string().as_str())
    );
}

#[test]
fn head_of_a_nar_that_is_being_fetched_sends_no_request() {
    let sample = sample(1, &[7; 100_000]);
    let upstream = ScriptedUpstream::start();
    let gate = Gate::default();
    let (opened, nar) = (gate.clone(), sample.nar.clone());
    upstream.on(&sample.nar_path, move |exchange| {
        exchange.head(0, nar.len());
        exchange.raw(&nar[..1000]);
        opened.wait(1);
        exchange.raw(&nar[1000..]);
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let mut fetch = Wire::to(&mirror);
    let path = &sample.nar_path;
    fetch.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    // The response arrives during the fetch, so from now on the mirror knows the NAR.
    assert_eq!(fetch.head().status, 200);
    let head = Wire::to(&mirror).request("HEAD", path, b"");
    assert_eq!(head.header("content-length"), sample.nar.len().to_string());
    assert_eq!(upstream.count(path), 1, "{:?}", upstream.requests());
    gate.open();
    assert!(fetch.rest() == sample.nar, "other bytes");
}
