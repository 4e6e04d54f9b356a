//! Builds without a feature: its variables are refused at start.
#![cfg(not(all(feature = "pages", feature = "tls", feature = "upstream")))]

#[cfg(not(feature = "pages"))]
#[tokio::test]
async fn a_build_without_pages_serves_nix_cache_info_to_browsers_and_nothing_to_browse() {
    let cache = crate::support::cache::TestCache::new();
    let text = cache.get("/nix-cache-info").await.text();
    for accept in ["*/*", "text/html"] {
        assert_eq!(cache.get_with("/", &[("accept", accept)]).await.is(200).text(), text);
        cache.get_with("/browse", &[("accept", accept)]).await.is(404);
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_refuses_its_variables() {
    for (name, value) in [
        ("NIX_STORED_TLS_CERT", "/run/keys/cert.pem"),
        ("NIX_STORED_TLS_KEY", "/run/keys/key.pem"),
        ("NIX_STORED_TLS_CLIENT_CA", "/run/keys/builders-ca.pem"),
    ] {
        start_is_refused(name, value);
    }
}

#[cfg(not(feature = "upstream"))]
#[test]
fn a_build_without_upstreams_refuses_their_variables() {
    for (name, value) in [
        ("NIX_STORED_UPSTREAMS", "https://cache.nixos.org"),
        ("NIX_STORED_UPSTREAM_NETRC", "/run/keys/netrc"),
        ("NIX_STORED_UPSTREAM_ABSENT_TTL", "60s"),
        ("NIX_STORED_UPSTREAM_PRESENT_TTL", "1h"),
    ] {
        start_is_refused(name, value);
    }
}

#[cfg(not(all(feature = "tls", feature = "upstream")))]
#[track_caller]
fn start_is_refused(name: &str, value: &str) {
    let failed = crate::support::daemon::Daemon::builder().env(name, value).start_fails();
    assert_eq!(failed.code, 64, "{}", failed.log);
    for part in [name, "this build does not support"] {
        assert!(failed.log.contains(part), "no {part} in {}", failed.log);
    }
}
