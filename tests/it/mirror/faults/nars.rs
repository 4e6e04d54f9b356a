//! NARs whose transfer breaks or stalls, or that differ from their narinfo.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix_stored::nix::{Compression, Sha256Hash};

use super::{ResponseChecks, assert_kept, assert_unharmed, changed, get, large};
use crate::mirror::mirror_of;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, nar_of_file};
use crate::support::packing::{WITHOUT_DECODER, pack, without_decoder};
use crate::support::scripted_upstream::{RecordedRequest, ScriptedUpstream};

#[test]
fn a_broken_transfer_of_a_nar_is_resumed() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    let (nar, half) = (sample.nar.clone(), sample.nar.len() / 2);
    upstream.on(&sample.nar_path, move |exchange| match exchange.request.from() {
        0 => {
            exchange.head(0, nar.len());
            exchange.raw(&nar[..half]);
            exchange.close();
        }
        _ => exchange.send(&nar),
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    let from: Vec<usize> = upstream
        .requests()
        .iter()
        .filter(|request| request.target == sample.nar_path)
        .map(RecordedRequest::from)
        .collect();
    assert_eq!(from, [0, half]);
    assert_kept(&mirror);
}

#[test]
fn an_upstream_without_ranges_is_read_again_from_the_beginning() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    let (nar, count) = (sample.nar.clone(), AtomicUsize::new(0));
    upstream.on(&sample.nar_path, move |exchange| {
        exchange.head(0, nar.len());
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => {
                exchange.raw(&nar[..nar.len() / 2]);
                exchange.close();
            }
            _ => {
                exchange.raw(&nar);
            }
        }
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn a_nar_whose_transfer_always_breaks_comes_from_the_next_upstream() {
    let sample = large();
    let half = sample.nar.len() / 2;
    // The first upstream closes the connection, or stalls, after half of each NAR.
    for hangs in [false, true] {
        let (one, other) = (ScriptedUpstream::with(&[&sample]), ScriptedUpstream::with(&[&sample]));
        let nar = sample.nar.clone();
        one.on(&sample.nar_path, move |exchange| {
            let from = exchange.request.from();
            exchange.head(from, nar.len());
            exchange.raw(&nar[from..half.max(from)]);
            if hangs {
                exchange.hang();
            }
            exchange.close();
        });
        let mirror = mirror_of(&[&one.impatient(), &other.url()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is(&sample.nar);
        let request = other.requests();
        assert_eq!(request.len(), 1, "{request:?}");
        assert_eq!(request[0].from(), half);
        assert_kept(&mirror);
    }
}

#[test]
fn a_nar_that_never_arrives_completely_is_aborted() {
    let sample = large();
    for hangs in [false, true] {
        let upstream = ScriptedUpstream::with(&[&sample]);
        let nar = sample.nar.clone();
        upstream.on(&sample.nar_path, move |exchange| {
            let from = exchange.request.from();
            exchange.head(from, nar.len());
            exchange.raw(&nar[from..from.max(nar.len() / 2)]);
            if hangs {
                exchange.hang();
            }
            exchange.close();
        });
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is_truncated();
        assert_unharmed(mirror);
    }
}

#[test]
fn a_nar_with_another_hash_is_aborted_and_not_requested_again() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    let mut nar = sample.nar.clone();
    nar[500] ^= 1;
    upstream.has(&sample.nar_path, &nar);
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is_truncated();
    mirror.wait_for_log("fetch of a NAR failed");
    mirror.wait_until("the narinfo is not served any more", || {
        get(&mirror, &sample.narinfo_path).status == 502
    });
    assert_eq!(get(&mirror, &sample.nar_path).status, 502);
    assert_eq!(upstream.count(&sample.nar_path), 1);
    assert_unharmed(mirror);
}

#[test]
fn after_a_nar_with_another_hash_the_next_upstream_is_tried() {
    let sample = large();
    let (one, other) = (ScriptedUpstream::with(&[&sample]), ScriptedUpstream::with(&[&sample]));
    let mut nar = sample.nar.clone();
    nar[500] ^= 1;
    one.has(&sample.nar_path, &nar);
    let mirror = mirror_of(&[&one.url(), &other.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is_truncated();
    mirror.wait_until("the other narinfo is served", || {
        other.count(&sample.narinfo_path) > 0 || get(&mirror, &sample.narinfo_path).status == 502
    });
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn a_nar_with_another_size_is_not_accepted() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    for size in ["1", "1000", "99999999"] {
        let narinfo = changed(&sample.narinfo, &[("FileSize", size)]);
        upstream.has(&sample.narinfo_path, narinfo.as_bytes());
        // The length differs in the head.
        let nar = sample.nar.clone();
        upstream.has(&sample.nar_path, &nar);
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        assert_eq!(get(&mirror, &sample.nar_path).status, 502);
        assert_unharmed(mirror);
        // The length differs only at the end of a chunked body.
        upstream.on(&sample.nar_path, move |exchange| {
            exchange.chunked();
            exchange.chunk(&nar);
            exchange.chunk(b"");
        });
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is_truncated();
        assert_unharmed(mirror);
    }
}

#[test]
fn a_wrong_content_length_is_detected() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    for claimed in [sample.nar.len() - 10, sample.nar.len() + 10] {
        let nar = sample.nar.clone();
        upstream.on(&sample.nar_path, move |exchange| {
            exchange.head(0, claimed);
            exchange.raw(&nar);
            exchange.close();
        });
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        assert_eq!(get(&mirror, &sample.nar_path).status, 502);
        assert_unharmed(mirror);

        // Without a FileSize the length cannot be compared.
        let narinfo = changed(&sample.narinfo, &[("FileSize", "")]);
        upstream.has(&sample.narinfo_path, narinfo.as_bytes());
        let mirror = mirror_of(&[&upstream.url()]).start();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is_truncated();
        assert_unharmed(mirror);
        upstream.has(&sample.narinfo_path, sample.narinfo.as_bytes());
    }
}

#[test]
fn a_nar_that_differs_from_its_narinfo_is_not_stored() {
    let (right, wrong) = (large(), Noise::new(8).bytes(1_000_000));
    let no_nar = right.with_file(Compression::None, wrong.clone());
    let other_nar = right.with_file(Compression::None, nar_of_file(&wrong));
    let packed = pack(Compression::Xz, &other_nar.nar).expect("the tests have an encoder");
    let other_packed = right.with_file(Compression::Xz, packed);
    let cut = pack(Compression::Xz, &right.nar).expect("the tests have an encoder");
    let cut = right.with_file(Compression::Xz, cut[..cut.len() / 2].to_vec());
    let size = (right.nar.len() + 8).to_string();
    let size = Sample { narinfo: changed(&right.narinfo, &[("NarSize", &size)]), ..right.clone() };
    let unreadable = without_decoder(WITHOUT_DECODER[3].1, 1_000_000);
    let unreadable = right.with_file(Compression::None, unreadable);
    for sample in [no_nar, other_nar, other_packed, cut, size, unreadable] {
        // The file itself matches its name.
        assert!(sample.narinfo.contains(&Sha256Hash::of(&sample.nar).to_string()));
        for store in ["", "?store=0"] {
            let upstream = ScriptedUpstream::with(&[&sample]);
            let mirror = mirror_of(&[&format!("{}{store}", upstream.url())]).start();
            assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
            get(&mirror, &sample.nar_path).is_truncated();
            mirror.wait_until("the narinfo is not served any more", || {
                get(&mirror, &sample.narinfo_path).status == 502
            });
            assert_eq!(get(&mirror, &sample.nar_path).status, 502);
            assert_unharmed(mirror);
        }
    }
}

#[test]
fn a_nar_that_is_missing_at_the_upstream_makes_its_narinfo_absent() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    for path in [&sample.nar_path, &sample.narinfo_path] {
        upstream.on(path, |exchange| exchange.status(404, ""));
    }
    assert_eq!(get(&mirror, &sample.nar_path).status, 404);
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 404);
    assert_unharmed(mirror);
}

#[test]
fn a_nar_that_does_not_fit_on_the_disk_is_507() {
    let (upstream, sample) = (ScriptedUpstream::start(), large());
    upstream.has(&sample.narinfo_path, sample.narinfo.as_bytes());
    upstream.has(&sample.nar_path, &sample.nar);
    let mirror = mirror_of(&[&upstream.url()]).env("NIX_STORED_MIN_FREE_SPACE", "1000T").start();
    // Neither a 404 nor a client error, so Nix tries the next cache.
    let response = get(&mirror, &sample.nar_path);
    assert_eq!(response.status, 507, "{response:?}");
    // The operator of the mirror can fix it, and the client cannot.
    mirror.wait_for_log("NIX_STORED_MIN_FREE_SPACE");
}
