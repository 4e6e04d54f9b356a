//! A build without upstreams says so, and does not start as if it had them.

use crate::support::daemon::Daemon;

#[test]
fn a_build_without_upstreams_says_so() {
    for (name, value) in [
        ("NIX_STORED_UPSTREAMS", "https://cache.nixos.org"),
        ("NIX_STORED_UPSTREAM_NETRC", "/run/keys/netrc"),
        ("NIX_STORED_UPSTREAM_ABSENT_TTL", "60s"),
        ("NIX_STORED_UPSTREAM_PRESENT_TTL", "1h"),
    ] {
        let failed = Daemon::builder().env(name, value).start_fails();
        assert_eq!(failed.code, 64, "{}", failed.log);
        for part in [name, "this build does not support"] {
            assert!(failed.log.contains(part), "no {part} in {}", failed.log);
        }
    }
}
