//! netrc: who may read and write, and what Nix prints for others. Nix sends the credentials of the host with the
//! first request.

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, with_paths};

/// The message of Nix before it tries again some seconds later.
const RETRY: &str = "retrying in";

/// A daemon with a read user and a write user.
fn private() -> Daemon {
    Daemon::builder()
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_USER_READ_PASS", "read-secret")
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "write-secret")
        .start()
}

/// A daemon with public reads.
fn public() -> Daemon {
    Daemon::builder()
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "write-secret")
        .start()
}

/// Checks that Nix fails without a retry, and returns its error.
#[track_caller]
fn refused(nix: &Nix, direction: &str, url: &str, paths: &[String]) -> String {
    let error = nix.fails(&with_paths(&["nix", "copy", direction, url], paths));
    assert!(!error.contains(RETRY), "Nix should not have tried again:\n{error}");
    error
}

/// The daemon's message, as Nix shows it.
fn reason(error: &str) -> &str {
    error.split_once("response body:").map_or("", |(_, body)| body.trim())
}

#[test]
fn the_write_user_uploads_and_the_read_user_downloads() {
    let (daemon, fixture) = (private(), fixture());
    let app = fixture.outputs("app");
    fixture.nix().with_netrc("writer", "write-secret").copy_to(daemon.url(), &app);

    let copied = fixture.reader().with_netrc("reader", "read-secret");
    copied.copy_from(daemon.url(), &app);
    copied.assert_has_the_same(&fixture.nix(), &app);

    let substituted = Nix::new().with_netrc("reader", "read-secret");
    let substituted = substituted.substituting_from(daemon.url(), fixture.public_key());
    substituted.realise(&app);
    substituted.assert_has_the_same(&fixture.nix(), &app);
}

#[test]
fn the_write_user_downloads_too() {
    let (daemon, fixture) = (private(), fixture());
    let app = fixture.outputs("app");
    fixture.nix().with_netrc("writer", "write-secret").copy_to(daemon.url(), &app);
    let reader = fixture.reader().with_netrc("writer", "write-secret");
    reader.copy_from(daemon.url(), &app);
    reader.assert_has_the_same(&fixture.nix(), &app);
}

#[test]
fn credentials_in_the_url_work_like_netrc() {
    let (daemon, fixture) = (private(), fixture());
    let app = fixture.outputs("app");
    fixture.nix().copy_to(&daemon.url_with("writer", "write-secret"), &app);
    let reader = fixture.reader();
    reader.copy_from(&daemon.url_with("reader", "read-secret"), &app);
    reader.assert_has_the_same(&fixture.nix(), &app);
}

#[test]
fn without_a_read_user_anyone_downloads_and_only_the_write_user_uploads() {
    let (daemon, fixture) = (public(), fixture());
    let app = fixture.outputs("app");
    fixture.nix().with_netrc("writer", "write-secret").copy_to(daemon.url(), &app);
    let reader = fixture.reader();
    reader.copy_from(daemon.url(), &app);
    reader.assert_has_the_same(&fixture.nix(), &app);
}

#[test]
fn an_upload_with_the_wrong_password_fails_at_once() {
    let (daemon, fixture) = (public(), fixture());
    let nix = fixture.nix().with_netrc("writer", "wrong-secret");
    let error = refused(&nix, "--to", daemon.url(), &fixture.outputs("app"));
    assert!(error.contains("HTTP error 401"), "{error}");
    assert!(!reason(&error).is_empty(), "{error}");
    assert!(!daemon.log().contains("wrong-secret"), "a password in the log:\n{}", daemon.log());
}

#[test]
fn an_upload_without_credentials_fails_at_once() {
    let (daemon, fixture) = (public(), fixture());
    let error = refused(&fixture.nix(), "--to", daemon.url(), &fixture.outputs("app"));
    assert!(error.contains("HTTP error 401"), "{error}");
}

#[test]
fn an_upload_by_the_read_user_is_forbidden_at_once() {
    let (daemon, fixture) = (private(), fixture());
    let nix = fixture.nix().with_netrc("reader", "read-secret");
    let error = refused(&nix, "--to", daemon.url(), &fixture.outputs("app"));
    assert!(error.contains("HTTP error 403"), "{error}");
    assert!(!reason(&error).is_empty(), "{error}");
}

#[test]
fn a_download_with_the_wrong_password_fails_at_once() {
    let daemon = private();
    let fixture = fixture();
    let app = fixture.outputs("app");
    fixture.nix().with_netrc("writer", "write-secret").copy_to(daemon.url(), &app);

    let reader = fixture.reader().with_netrc("reader", "wrong-secret");
    let error = refused(&reader, "--from", daemon.url(), &app);
    // Before 2.26, Nix takes a 401 for an absent cache, tries to create one, and hides why that
    // failed.
    let named = ["HTTP error 401", "does not appear to be a binary cache"];
    assert!(named.iter().any(|part| error.contains(part)), "{error}");
    assert!(!daemon.log().contains("wrong-secret"), "a password in the log:\n{}", daemon.log());
}

#[test]
fn a_refused_upload_leaves_nothing() {
    let (daemon, fixture) = (public(), fixture());
    refused(&fixture.nix(), "--to", daemon.url(), &fixture.outputs("app"));
    let error = fixture.reader().fails(&[
        "nix",
        "path-info",
        "--store",
        daemon.url(),
        &fixture.output("app"),
    ]);
    assert!(error.contains("is not valid"), "{error}");
    assert_eq!(daemon.names_in("nar"), [""; 0]);
}
