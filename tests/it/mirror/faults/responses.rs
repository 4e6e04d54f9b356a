//! Responses of upstreams, and what the client gets.

use super::{ResponseChecks, assert_kept, assert_unharmed, get, large, narinfo};
use crate::mirror::mirror_of;
use crate::support::scripted_upstream::{Exchange, ScriptedUpstream};
use crate::support::wire::Wire;

#[test]
fn an_upstream_that_refuses_connections_is_a_bad_gateway() {
    let upstream = ScriptedUpstream::start();
    let url = upstream.impatient();
    upstream.stop();
    let sample = large();
    for path in
        [&sample.narinfo_path, &sample.nar_path, &sample.narinfo_path.replace("narinfo", "ls")]
    {
        let mirror = mirror_of(&[&url]).start();
        let response = get(&mirror, path);
        assert_eq!(response.status, 502, "{path}");
        assert_eq!(response.header("cache-control"), "no-store");
        assert_eq!(Wire::to(&mirror).request("HEAD", path, b"").status, 502, "{path}");
        assert_unharmed(mirror);
    }
}

#[test]
fn an_upstream_that_never_answers_is_a_gateway_timeout() {
    let upstream = ScriptedUpstream::start();
    upstream.otherwise(Exchange::hang);
    let sample = large();
    let mirror = mirror_of(&[&upstream.impatient()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 504);
    assert_eq!(get(&mirror, &sample.nar_path).status, 504);
    assert_unharmed(mirror);
}

#[test]
fn a_status_other_than_404_is_a_bad_gateway() {
    for status in [401, 500, 503, 418, 204, 206, 304] {
        let upstream = ScriptedUpstream::start();
        upstream.answer_all_with(status);
        let mirror = mirror_of(&[&upstream.url()]).start();
        let sample = large();
        assert_eq!(get(&mirror, &sample.narinfo_path).status, 502, "{status}");
        assert_eq!(get(&mirror, &sample.nar_path).status, 502, "{status}");
        assert_unharmed(mirror);
    }
}

#[test]
fn absent_at_all_upstreams_is_404_and_any_failure_is_502() {
    let (empty, gone, broken) =
        (ScriptedUpstream::start(), ScriptedUpstream::start(), ScriptedUpstream::start());
    gone.answer_all_with(410);
    broken.answer_all_with(500);
    let mirror = mirror_of(&[&empty.url(), &gone.url()]).start();
    for path in [narinfo(1), large().nar_path, "/log/x.drv".to_owned()] {
        assert_eq!(get(&mirror, &path).status, 404, "{path}");
    }
    for order in [[&empty, &broken], [&broken, &empty]] {
        let mirror =
            mirror_of(&order.map(ScriptedUpstream::url).each_ref().map(String::as_str)).start();
        assert_eq!(get(&mirror, &narinfo(1)).status, 502);
        assert_eq!(get(&mirror, &large().nar_path).status, 502);
    }
    let sample = large();
    let full = ScriptedUpstream::with(&[&sample]);
    let mirror = mirror_of(&[&broken.url(), &full.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_kept(&mirror);
}

#[test]
fn status_403_means_absent_where_the_upstream_can_be_read() {
    let upstream = ScriptedUpstream::start();
    upstream.answer_all_with(403);
    upstream.has("/nix-cache-info", b"StoreDir: /nix/store\n");
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &narinfo(1)).status, 404);
    assert_eq!(get(&mirror, &large().nar_path).status, 404);
    assert_eq!(upstream.count("/nix-cache-info"), 1);
    assert_unharmed(mirror);
}

#[test]
fn status_403_is_a_failure_where_nothing_can_be_read() {
    let upstream = ScriptedUpstream::start();
    upstream.answer_all_with(403);
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &narinfo(1)).status, 502);
    assert_unharmed(mirror);
}

#[test]
fn a_request_on_a_closed_connection_is_sent_again() {
    let upstream = ScriptedUpstream::start();
    upstream.otherwise(|exchange| match exchange.before {
        0 => exchange.status(404, ""),
        _ => exchange.close(),
    });
    let mirror = mirror_of(&[&upstream.url()]).start();
    let mut wire = Wire::to(&mirror);
    for number in 0..10 {
        assert_eq!(wire.request("GET", &narinfo(number), b"").status, 404, "{}", mirror.log());
    }
    assert!(upstream.requests().len() > 10, "no connection was used twice");
}

#[test]
fn redirects_are_followed_but_not_in_circles() {
    let sample = large();
    let (upstream, other) = (ScriptedUpstream::start(), ScriptedUpstream::with(&[&sample]));
    for path in [&sample.narinfo_path, &sample.nar_path] {
        let to = format!("Location: {}{path}\n", other.url());
        upstream.on(path, move |exchange| exchange.status(302, &to));
    }
    let round = narinfo(2);
    let to = format!("Location: {round}\n");
    upstream.on(&round, move |exchange| exchange.status(302, &to));
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    get(&mirror, &sample.nar_path).is(&sample.nar);
    assert_eq!(get(&mirror, &round).status, 502);
    assert!(upstream.count(&round) < 10);
    assert_kept(&mirror);
}

#[test]
fn a_redirect_to_another_host_gets_no_password() {
    let sample = large();
    let (upstream, other) = (ScriptedUpstream::start(), ScriptedUpstream::with(&[&sample]));
    let to = format!("Location: http://localhost:{}{}\n", other.port(), sample.narinfo_path);
    upstream.on(&sample.narinfo_path, move |exchange| exchange.status(302, &to));
    let mirror = mirror_of(&[&upstream.url().replace("://", "://me:secret@")]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    assert!(upstream.requests()[0].header("authorization").is_some());
    assert!(other.requests()[0].header("authorization").is_none());
}

#[test]
fn head_matches_get_and_stores_nothing() {
    let sample = large();
    let upstream = ScriptedUpstream::with(&[&sample]);
    let mirror = mirror_of(&[&upstream.url()]).start();
    for (path, bytes) in
        [(&sample.narinfo_path, sample.narinfo.len()), (&sample.nar_path, sample.nar.len())]
    {
        let head = Wire::to(&mirror).request("HEAD", path, b"");
        assert_eq!((head.status, head.header("content-length")), (200, &*bytes.to_string()));
    }
    assert_unharmed(mirror);
    // Paths that are not stored must be uploaded, and Nix does not upload what is reported as
    // present.
    let mirror = mirror_of(&[&format!("{}?store=0", upstream.url())]).start();
    assert_eq!(Wire::to(&mirror).request("HEAD", &sample.nar_path, b"").status, 404);
}
