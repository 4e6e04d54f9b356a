//! Redirects that an upstream must not make.

use super::{assert_unharmed, get, large};
use crate::mirror::mirror_of;
use crate::support::scripted_upstream::ScriptedUpstream;

#[test]
fn a_redirect_to_another_network_is_not_followed_and_nothing_is_stored() {
    let upstream = ScriptedUpstream::start();
    let listing = "/8ha1dhmx807czjczmwy078s4r9s254il.ls";
    let narinfo = "/8ha1dhmx807czjczmwy078s4r9s254il.narinfo";
    for target in [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.255.255.1/x",
        "http://[fe80::1]/x",
        "https://192.168.255.1/x",
    ] {
        upstream.otherwise(move |exchange| {
            exchange.status(302, &format!("Location: {target}\n"));
        });
        let mirror = mirror_of(&[&upstream.impatient()]).start();
        for path in [listing, narinfo] {
            let refused = get(&mirror, path);
            assert_eq!(refused.status, 502, "{target}: {}", mirror.log());
        }
        mirror.wait_for_log("redirect to");
        assert_unharmed(mirror);
    }
}

#[test]
fn a_redirect_within_the_network_of_the_upstream_is_followed() {
    let (upstream, other, sample) = (ScriptedUpstream::start(), ScriptedUpstream::start(), large());
    other.has(&sample.nar_path, &sample.nar);
    upstream.has(&sample.narinfo_path, sample.narinfo.as_bytes());
    let location = format!("Location: {}{}\n", other.url(), sample.nar_path);
    upstream.on(&sample.nar_path, move |exchange| exchange.status(307, &location));
    let mirror = mirror_of(&[&upstream.url()]).start();
    assert_eq!(get(&mirror, &sample.narinfo_path).status, 200);
    let nar = get(&mirror, &sample.nar_path);
    assert!(nar.status == 200 && nar.body == sample.nar, "{}", nar.status);
    assert_eq!(other.count(&sample.nar_path), 1);
    let asked = other.requests().remove(0);
    assert_eq!(asked.header("referer"), None);
}
