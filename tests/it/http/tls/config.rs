//! Errors in certificates and keys are reported at start.

use super::{curl, showing, signed_by};
use crate::support::certificates::{Authority, CertFiles};
use crate::support::daemon::Daemon;
use crate::support::nix::utf8;
use crate::support::scratch::Scratch;

#[track_caller]
fn is_refused(env: &[(&str, &str)], parts: &[&str]) {
    let daemon =
        env.iter().fold(Daemon::builder(), |daemon, (name, value)| daemon.env(name, value));
    let failed = daemon.start_fails();
    assert_eq!(failed.code, 64, "{}", failed.log);
    for part in parts {
        assert!(failed.log.contains(part), "“{part}” is not in:\n{}", failed.log);
    }
    assert_eq!(failed.log.lines().count(), parts.len(), "{}", failed.log);
}

const CERT: &str = "NIX_STORED_TLS_CERT";
const KEY: &str = "NIX_STORED_TLS_KEY";
const CLIENT_CA: &str = "NIX_STORED_TLS_CLIENT_CA";

#[test]
fn unusable_certificates_and_keys_are_configuration_errors() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let (one, other) = (authority.server("127.0.0.1"), authority.server("127.0.0.1"));
    let (cert, key) = (utf8(&one.cert), utf8(&one.key));
    let text = scratch.join("text");
    std::fs::write(&text, "no PEM\n").expect("written");
    let text = utf8(&text);
    let broken = scratch.join("broken");
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&broken, pem).expect("written");
    let broken = utf8(&broken);

    is_refused(&[(CERT, cert)], &["NIX_STORED_TLS_CERT: the certificate has no key"]);
    is_refused(&[(KEY, key)], &["NIX_STORED_TLS_KEY: the key has no certificate"]);
    is_refused(
        &[(CLIENT_CA, authority.file())],
        &["NIX_STORED_TLS_CLIENT_CA: client certificates need TLS"],
    );
    is_refused(
        &[(CERT, "/absent/cert"), (KEY, text), (CLIENT_CA, text)],
        &[
            "NIX_STORED_TLS_CERT: cannot read “/absent/cert”: No such file",
            "” contains no private key in PEM format",
            "NIX_STORED_TLS_CLIENT_CA: “",
        ],
    );
    is_refused(
        &[(CERT, key), (KEY, cert)],
        &["contains no certificate in PEM format", "contains no private key"],
    );
    let wrong_key = utf8(&other.key);
    is_refused(&[(CERT, cert), (KEY, wrong_key)], &["is not the key of the certificate in “"]);
    is_refused(&[(CERT, broken), (KEY, key)], &["cannot use “"]);
    is_refused(
        &[(CERT, cert), (KEY, key), (CLIENT_CA, broken)],
        &["contains an invalid certificate"],
    );
}

#[test]
fn an_expired_certificate_is_logged_as_a_warning() {
    let authority = Authority::new();
    let daemon = showing(&authority.expired_server("127.0.0.1")).start();
    daemon.wait_for_log("the certificate in NIX_STORED_TLS_CERT has expired");
    let refused = curl(&authority, daemon.url(), &[]);
    assert!(refused.status == 0 && refused.error.contains("expired"), "{refused:?}");

    let daemon = signed_by(&authority).start();
    assert!(!daemon.log().contains("clients will reject it"), "{}", daemon.log());
}

#[test]
fn clients_refuse_a_certificate_for_another_address_or_of_another_ca() {
    let (authority, other) = (Authority::new(), Authority::new());
    let daemon = signed_by(&authority).start();
    assert!(daemon.url().starts_with("https://127.0.0.1:"), "{}", daemon.url());
    let url = format!("{}/nix-cache-info", daemon.url());
    curl(&authority, &url, &[]).is(200);
    assert_eq!(curl(&other, &url, &[]).status, 0);

    let CertFiles { cert, key } = authority.server("127.0.0.9");
    let elsewhere = showing(&CertFiles { cert, key }).start();
    assert_eq!(curl(&authority, elsewhere.url(), &[]).status, 0);
}
