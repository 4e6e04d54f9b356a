//! Proxies between the mirror and an upstream. The upstream accepts only connections from the source address of the
//! proxy.

use super::mirror_of;
use crate::support::cache_dir::assert_consistent;
use crate::support::objects::{Sample, sample};
use crate::support::scripted_upstream::ScriptedUpstream;
use crate::support::server_process::{PROXY_SOURCE_ADDRESS, ServerProcess};

/// An upstream that serves this sample only to the proxy.
fn guarded(sample: &Sample) -> ScriptedUpstream {
    let upstream = ScriptedUpstream::start();
    for (path, bytes) in
        [(&sample.narinfo_path, sample.narinfo.as_bytes()), (&sample.nar_path, &sample.nar)]
    {
        let bytes = bytes.to_vec();
        upstream.on(path, move |exchange| match exchange.request.peer.to_string().as_str() {
            PROXY_SOURCE_ADDRESS => exchange.send(&bytes),
            _ => exchange.status(500, ""),
        });
    }
    upstream
}

/// Downloads a sample through a mirror whose upstream `host` is behind `proxy`.
#[track_caller]
fn assert_downloads_through(proxy: &str, host: &str) {
    let sample = sample(1, &[7; 100_000]);
    let upstream = guarded(&sample);
    let url = format!("http://{host}:{}", upstream.port());

    let mirror = mirror_of(&[&url]).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 502, "the upstream answers direct connections");

    let mirror = mirror_of(&[&format!("{url}?proxy={proxy}")]).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 200, "{}", mirror.log());
    assert_eq!(mirror.get(&sample.nar_path), (200, sample.nar.clone()));
    assert_eq!(assert_consistent(mirror.dir()), 1);
}

/// Checks that a mirror with this proxy serves nothing, and that no password is logged.
#[track_caller]
fn assert_does_not_go_through(proxy: &str) {
    let sample = sample(1, b"some");
    let upstream = guarded(&sample);
    let mirror = mirror_of(&[&format!("{}?proxy={proxy}", upstream.url())]).start();
    assert_eq!(mirror.get(&sample.narinfo_path).0, 502);
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    let (_, log) = mirror.stop();
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn an_http_proxy_is_used() {
    let proxy = ServerProcess::tinyproxy("");
    assert_downloads_through(&format!("http://{}", proxy.address()), "127.0.0.1");
}

#[test]
fn an_http_proxy_gets_its_password() {
    let proxy = ServerProcess::tinyproxy("BasicAuth me secret");
    assert_downloads_through(&format!("http://me:secret@{}", proxy.address()), "127.0.0.1");
    assert_does_not_go_through(&format!("http://me:wrong-secret@{}", proxy.address()));
    assert_does_not_go_through(&format!("http://{}", proxy.address()));
}

#[test]
fn a_socks5_proxy_gets_addresses() {
    let proxy = ServerProcess::microsocks(&[]);
    assert_downloads_through(&format!("socks5://{}", proxy.address()), "localhost");
    let log = proxy.log();
    assert!(log.contains("connected to 127.0.0.1:") && !log.contains("to localhost:"), "{log}");
}

#[test]
fn a_socks5h_proxy_gets_host_names() {
    let proxy = ServerProcess::microsocks(&[]);
    assert_downloads_through(&format!("socks5h://{}", proxy.address()), "localhost");
    let log = proxy.log();
    assert!(log.contains("connected to localhost:"), "{log}");
}

#[test]
fn a_socks5_proxy_gets_its_password() {
    let proxy = ServerProcess::microsocks(&["-u", "me", "-P", "secret"]);
    assert_downloads_through(&format!("socks5://me:secret@{}", proxy.address()), "127.0.0.1");
    assert_does_not_go_through(&format!("socks5://me:wrong-secret@{}", proxy.address()));
    assert_does_not_go_through(&format!("socks5://{}", proxy.address()));
}

#[test]
fn without_its_proxy_an_upstream_gets_no_request() {
    let gone = ScriptedUpstream::start();
    let proxy = gone.url();
    gone.stop();
    assert_does_not_go_through(&proxy);
    assert_does_not_go_through(&proxy.replace("http", "socks5h"));
}
