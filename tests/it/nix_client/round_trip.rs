//! Paths come back unchanged: uploaded by `nix copy --to`, copied into an empty store by `nix copy --from`, and
//! into another by `nix-store -r` with the cache as the only substituter. Signatures are required everywhere.

use crate::support::daemon::Daemon;
use crate::support::fixture::{closure_nix, fixture};
use crate::support::nix::{Nix, utf8, with_paths};

/// Uploads these paths of `source`, signed with `key`, and substitutes them in both ways.
#[track_caller]
fn round_trip(source: &Nix, key: &str, parameters: &str, paths: &[String]) {
    let daemon = Daemon::start();
    source.copy_to(&format!("{}{parameters}", daemon.url()), paths);

    let copied = Nix::new().with("trusted-public-keys", key);
    copied.copy_from(daemon.url(), paths);
    copied.assert_has_the_same(source, paths);
    drop(copied);

    let substituted = Nix::new().substituting_from(daemon.url(), key);
    substituted.realise(paths);
    substituted.assert_has_the_same(source, paths);
}

#[test]
fn a_closure_with_references_comes_back_whole() {
    let fixture = fixture();
    let app = fixture.outputs("app");
    assert_eq!(fixture.nix().closure(&app).len(), 4, "app, its two libraries, and their base");
    round_trip(&fixture.nix(), fixture.public_key(), "", &app);
}

#[test]
fn every_output_of_a_path_comes_back() {
    let fixture = fixture();
    let outputs = fixture.outputs("split");
    assert_eq!(outputs.len(), 3, "out, lib and dev");
    round_trip(&fixture.nix(), fixture.public_key(), "", &outputs);
}

#[test]
fn odd_names_and_odd_files_come_back() {
    let fixture = fixture();
    let paths = [fixture.outputs("odd"), fixture.outputs("fixed")].concat();
    round_trip(&fixture.nix(), fixture.public_key(), "", &paths);
}

#[test]
fn a_200_mib_path_comes_back() {
    let source = Nix::new();
    let key = source.signing_key("big-1");
    let paths = [source.add_big_file(200)];
    source.sign(&key, &paths);
    // xz, the default, would take longer than all other tests together
    round_trip(&source, &key.public, "?compression=zstd", &paths);
}

#[test]
fn a_thousand_tiny_paths_come_back() {
    let source = Nix::new();
    let key = source.signing_key("tiny-1");
    let paths = source.add_tiny_files("tiny", 1000);
    assert_eq!(paths.len(), 1000);
    source.sign(&key, &paths);
    round_trip(&source, &key.public, "", &paths);
}

#[test]
fn a_content_addressed_derivation_is_found_by_its_realisation() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let file = closure_nix();
    let copy = ["nix", "copy", "--to", daemon.url(), "-f", utf8(&file)];
    let installables = ["addressed", "addressedUser", "addressedUser.doc"];
    fixture.nix().ok(&[&copy[..], &installables].concat());
    let outputs = [fixture.outputs("addressed"), fixture.outputs("addressedUser")].concat();

    let copied = fixture.reader();
    copied.copy_from(daemon.url(), &outputs);
    copied.assert_has_the_same(&fixture.nix(), &outputs);

    // this store does not know the output paths: they come from the realisations in the cache
    let substituted = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    for attribute in ["addressed", "addressedUser"] {
        assert_eq!(substituted.build(&file, attribute), fixture.outputs(attribute));
    }
    substituted.assert_has_the_same(&fixture.nix(), &outputs);
}

#[test]
fn a_path_without_a_trusted_signature_is_not_substituted() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let app = fixture.outputs("app");
    fixture.nix().copy_to(daemon.url(), &app);

    let untrusting_nix = Nix::new();
    let other_key = untrusting_nix.signing_key("stranger-1");
    let untrusting_nix = untrusting_nix.substituting_from(daemon.url(), &other_key.public);
    untrusting_nix.fails(&with_paths(&["nix-store", "-r"], &app));
    untrusting_nix.fails(&with_paths(&["nix", "copy", "--from", daemon.url()], &app));
}

#[test]
fn a_key_in_the_store_url_signs_what_is_uploaded() {
    let daemon = Daemon::start();
    let source = Nix::new();
    let key = source.signing_key("uploader-1");
    let paths = source.build(&closure_nix(), "app");
    source.copy_to(&format!("{}?secret-key={}", daemon.url(), utf8(&key.secret)), &paths);

    let substituted = Nix::new().substituting_from(daemon.url(), &key.public);
    substituted.realise(&paths);
    substituted.assert_has_the_same(&source, &paths);
}
