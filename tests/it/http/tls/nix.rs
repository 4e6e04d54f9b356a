//! An unmodified Nix over HTTPS.

use super::signed_by;
use crate::support::certificates::Authority;
use crate::support::fixture::fixture;
use crate::support::nix::Nix;

#[test]
fn a_thousand_paths_are_uploaded_and_substituted_over_http_2() {
    let authority = Authority::new();
    let daemon = signed_by(&authority).env("NIX_STORED_LOG_LEVEL", "debug").start();
    let source = Nix::new().trusting_ca(authority.file());
    let key = source.signing_key("tiny-1");
    let paths = source.add_tiny_files("tiny", 1000);
    source.sign(&key, &paths);
    source.copy_to(daemon.url(), &paths);

    let copied = Nix::new().trusting_ca(authority.file()).with("trusted-public-keys", &key.public);
    copied.copy_from(daemon.url(), &paths);
    copied.assert_has_the_same(&source, &paths);

    let substituted = Nix::new().trusting_ca(authority.file());
    let substituted = substituted.substituting_from(daemon.url(), &key.public);
    substituted.realise(&paths);
    substituted.assert_has_the_same(&source, &paths);

    let (_, log) = daemon.stop();
    let started: Vec<&str> =
        log.lines().filter(|line| line.contains("TLS connection established")).collect();
    assert!(started.iter().all(|line| line.contains("protocol=\"HTTP/2\"")), "{started:?}");
    // There were thousands of requests, from a few commands that each used one connection.
    assert!((1..100).contains(&started.len()), "{}", started.len());
    for failure in ["failed", "refused", "lost a connection", "aborted"] {
        let line = log.lines().find(|line| line.contains(failure));
        assert_eq!(line, None);
    }
}

#[test]
fn closures_and_credentials_work_over_https() {
    let (authority, fixture) = (Authority::new(), fixture());
    let daemon = signed_by(&authority)
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_USER_READ_PASS", "r")
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "w")
        .start();
    let paths = fixture.all();
    let builder = fixture.nix().trusting_ca(authority.file());
    let refused = builder.clone().with_netrc("writer", "wrong");
    let refused = refused.fails(&["nix", "copy", "--to", daemon.url(), &paths[0]]);
    // Nix requests `nix-cache-info` first, which it may not read either.
    assert!(refused.contains("does not appear to be a binary cache"), "{refused}");
    let builder = builder.fresh_home().with_netrc("writer", "w");
    builder.copy_to(daemon.url(), &paths);
    let reader = fixture.reader().trusting_ca(authority.file()).with_netrc("reader", "r");
    reader.copy_from(daemon.url(), &paths);
    reader.assert_has_the_same(&fixture.nix(), &paths);
}

#[test]
fn a_large_path_is_uploaded_and_substituted_over_https() {
    let authority = Authority::new();
    let daemon = signed_by(&authority).start();
    let source = Nix::new().trusting_ca(authority.file());
    let key = source.signing_key("big-1");
    let paths = [source.add_big_file(100)];
    source.sign(&key, &paths);
    source.copy_to(&format!("{}?compression=none", daemon.url()), &paths);
    let copied = Nix::new().trusting_ca(authority.file()).with("trusted-public-keys", &key.public);
    copied.copy_from(daemon.url(), &paths);
    copied.assert_has_the_same(&source, &paths);
    // Neither the upload nor the download is held in memory.
    assert!(daemon.peak_memory() < 90 << 20, "{}", daemon.peak_memory());
}

#[test]
fn nix_without_the_ca_refuses_the_daemon() {
    let (authority, fixture) = (Authority::new(), fixture());
    let daemon = signed_by(&authority).start();
    let untrusting_nix = fixture.nix().trusting_ca(Authority::new().file());
    let path = fixture.output("app");
    let error = untrusting_nix.fails(&["nix", "copy", "--to", daemon.url(), &path]);
    assert!(error.contains("SSL") || error.contains("certificate"), "{error}");
}
