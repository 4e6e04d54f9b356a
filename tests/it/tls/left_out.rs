//! A build without TLS says so, and does not start as if it had it.

use crate::support::daemon::Daemon;

#[test]
fn a_build_without_tls_says_so() {
    for (name, value) in [
        ("NIX_STORED_TLS_CERT", "/run/keys/cert.pem"),
        ("NIX_STORED_TLS_KEY", "/run/keys/key.pem"),
        ("NIX_STORED_TLS_CLIENT_CA", "/run/keys/builders-ca.pem"),
    ] {
        let failed = Daemon::builder().env(name, value).start_fails();
        assert_eq!(failed.code, 64, "{}", failed.log);
        for part in [name, "this build does not support"] {
            assert!(failed.log.contains(part), "no {part} in {}", failed.log);
        }
    }
}
