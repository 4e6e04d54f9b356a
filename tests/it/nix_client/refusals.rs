//! The messages that Nix shows at once when the cache refuses an upload.

use std::os::unix::fs::PermissionsExt;

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, with_paths};

/// Checks that a copy fails without a retry, and returns the error of Nix.
#[track_caller]
fn refused(nix: &Nix, daemon: &Daemon, paths: &[String]) -> String {
    let error = nix.fails(&with_paths(&["nix", "copy", "--to", daemon.url()], paths));
    assert!(!error.contains("retrying in"), "Nix should not have tried again:\n{error}");
    error
}

#[track_caller]
fn assert_shows(error: &str, sentence: &str) {
    assert!(error.contains(sentence), "“{sentence}” is not in:\n{error}");
}

#[test]
fn nix_shows_that_a_path_has_no_trusted_signature() {
    let daemon =
        Daemon::builder().env("NIX_STORED_TRUSTED_PUBLIC_KEYS", fixture().public_key()).start();
    let nix = Nix::new();
    let untrusted_key = nix.signing_key("stranger-1");
    let unsigned = nix.add_tiny_files("unsigned", 1);
    assert_shows(
        &refused(&nix, &daemon, &unsigned),
        "no valid signature by a key that this cache trusts",
    );
    assert_shows(&refused(&nix, &daemon, &unsigned), "none at all");
    nix.sign(&untrusted_key, &unsigned);
    nix.forget_caches();
    assert_shows(&refused(&nix, &daemon, &unsigned), "it has stranger-1");
    // Correctly signed paths are accepted.
    fixture().nix().copy_to(daemon.url(), &fixture().outputs("app"));
}

#[test]
fn nix_shows_that_a_path_is_damaged_in_the_store_of_the_builder() {
    let daemon = Daemon::start();
    let nix = Nix::new();
    let paths = nix.add_tiny_files("damaged", 1);
    let file = nix.real(&paths[0]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))
        .expect("the owner may change it");
    let contents = std::fs::read(&file).expect("readable");
    let flipped: Vec<u8> = contents.iter().map(|byte| byte ^ 1).collect();
    std::fs::write(&file, flipped).expect("writable");
    assert_shows(&refused(&nix, &daemon, &paths), "the narinfo's NarHash is sha256:");
}

#[test]
fn nix_shows_that_a_path_is_too_large() {
    let daemon = Daemon::builder().env("NIX_STORED_MAX_UPLOAD_SIZE", "1M").start();
    let nix = Nix::new();
    let large = vec![nix.add_big_file(4)];
    assert_shows(&refused(&nix, &daemon, &large), "larger than the limit of 1048576 bytes");
}

#[test]
fn nix_shows_that_the_cache_has_another_store_dir() {
    let daemon = Daemon::builder().env("NIX_STORED_STORE_DIR", "/gnu/store").start();
    let nix = Nix::new();
    let paths = nix.add_tiny_files("elsewhere", 1);
    assert_shows(&refused(&nix, &daemon, &paths), "/gnu/store");
}

#[test]
fn a_whole_closure_is_accepted_where_references_must_be_stored_first() {
    let daemon = Daemon::builder().env("NIX_STORED_REQUIRE_REFERENCES", "1").start();
    let app = fixture().outputs("app");
    fixture().nix().copy_to(daemon.url(), &app);
    let reader = fixture().reader();
    reader.copy_from(daemon.url(), &app);
    reader.assert_has_the_same(&fixture().nix(), &app);
}
