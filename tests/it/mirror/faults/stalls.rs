//! Upstreams with an open circuit, and requests that need not wait for them.

use std::sync::Barrier;

use super::{ResponseChecks, assert_kept, assert_unharmed, get, large, narinfo};
use crate::mirror::mirror_of;
use crate::support::objects::sample;
use crate::support::scripted_upstream::{Exchange, Gate, ScriptedUpstream};
use crate::support::wire::Wire;

#[test]
fn a_stalled_narinfo_is_counted_as_a_failure() {
    let sample = large();
    let (upstream, other) = (ScriptedUpstream::start(), ScriptedUpstream::with(&[&sample]));
    upstream.otherwise(|exchange| {
        exchange.head(0, 100);
        exchange.hang();
    });
    let mirror = mirror_of(&[&upstream.impatient(), &other.url()]).start();
    for number in 2..5 {
        assert!([502, 504].contains(&get(&mirror, &narinfo(number)).status));
    }
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    assert_eq!(upstream.requests().len(), 3, "another request was sent");
}

#[test]
fn stored_objects_are_served_without_an_upstream() {
    let (own, absent) = (sample(3, b"own"), narinfo(4));
    let (upstream, let_go) = (ScriptedUpstream::start(), Gate::default());
    let gate = let_go.clone();
    upstream.on(&absent, move |exchange| {
        gate.wait(1);
        exchange.status(404, "");
    });
    let mirror = mirror_of(&[&format!("{}?timeout=1h", upstream.url())]).start();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&mirror, &absent).status);
        upstream.wait_for(&absent, 1);
        let mut wire = Wire::to(&mirror);
        assert_eq!(wire.request("PUT", &own.nar_path, &own.nar).status, 201);
        assert_eq!(wire.request("PUT", &own.narinfo_path, own.narinfo.as_bytes()).status, 201);
        wire.request("GET", &own.narinfo_path, b"").is(own.narinfo.as_bytes());
        wire.request("GET", &own.nar_path, b"").is(&own.nar);
        let_go.open();
        assert_eq!(waiting.join().expect("a response arrives"), 404);
    });
}

#[test]
fn after_three_failures_the_next_upstream_is_tried_first() {
    let sample = large();
    let (dead, alive) = (ScriptedUpstream::start(), ScriptedUpstream::with(&[&sample]));
    dead.otherwise(Exchange::hang);
    let mirror = mirror_of(&[&dead.impatient(), &alive.url()]).start();
    for number in 2..5 {
        assert_eq!(get(&mirror, &narinfo(number)).status, 504);
    }
    mirror.wait_for_log("circuit open for");
    assert_eq!(get(&mirror, &narinfo(5)).status, 502);
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_eq!(dead.requests().len(), 3, "another request was sent");
    assert_kept(&mirror);
}

#[test]
fn requests_queued_for_a_dead_upstream_fail_with_the_running_ones() {
    const CLIENTS: u8 = 200;
    let dead = ScriptedUpstream::start();
    dead.otherwise(Exchange::hang);
    let mirror = mirror_of(&[&dead.impatient()]).start();
    let together = Barrier::new(usize::from(CLIENTS));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (mirror, together) = (&mirror, &together);
            scope.spawn(move || {
                together.wait();
                let status = get(mirror, &narinfo(number)).status;
                assert!([502, 504].contains(&status), "{status}");
            });
        }
    });
    let asked = dead.requests().len();
    // The first 64 requests are concurrent. Each timeout allows another one, and three timeouts
    // open the circuit.
    assert!(asked < 100, "{asked} requests were sent");
    assert_unharmed(mirror);
}

#[test]
fn an_upstream_that_sends_retry_after_gets_no_requests() {
    for status in [429, 503] {
        let upstream = ScriptedUpstream::start();
        upstream.otherwise(move |exchange| exchange.status(status, "Retry-After: 120\n"));
        let sample = large();
        let other = ScriptedUpstream::with(&[&sample]);
        let mirror = mirror_of(&[&upstream.url(), &other.url()]).start();
        assert_eq!(get(&mirror, &narinfo(2)).status, 502);
        mirror.wait_for_log("circuit open for 120s");
        assert_eq!(get(&mirror, &narinfo(3)).status, 502);
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
        get(&mirror, &sample.nar_path).is(&sample.nar);
        assert_eq!(upstream.requests().len(), 1, "another request was sent");
    }
}
