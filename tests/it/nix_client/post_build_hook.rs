//! A builder that uploads from its post-build hook, as the Nix manual describes it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::support::daemon::Daemon;
use crate::support::fixture::closure_nix;
use crate::support::nix::{Nix, utf8};

/// Debian's Nix 2.8.0 leaves `OUT_PATHS` empty; the outputs can be read from the derivation.
const HOOK: &str = r#"#!/bin/sh
set -eu
paths=${OUT_PATHS:-$(nix-store -q --outputs "$DRV_PATH")}
exec nix copy --to "$CACHE" $paths
"#;

/// A Nix that uploads its builds to `daemon`.
fn builder(daemon: &Daemon) -> Nix {
    let nix = Nix::new();
    let hook = nix.file("upload");
    fs::write(&hook, HOOK.replace("$CACHE", daemon.url())).expect("the hook is written");
    fs::set_permissions(&hook, Permissions::from_mode(0o755)).expect("the hook is made executable");
    let hook = utf8(&hook).to_owned();
    nix.with("post-build-hook", &hook)
}

#[test]
fn paths_uploaded_by_a_post_build_hook_are_substituted_elsewhere() {
    let daemon = Daemon::start();
    let builder = builder(&daemon);
    let key = builder.signing_key("builder-1");
    let builder = builder.with("secret-key-files", utf8(&key.secret));
    let file = closure_nix();
    let paths = [builder.build(&file, "app"), builder.build(&file, "split")].concat();

    let elsewhere = Nix::new().substituting_from(daemon.url(), &key.public);
    elsewhere.realise(&paths);
    elsewhere.assert_has_the_same(&builder, &paths);
}

#[test]
fn a_post_build_hook_that_may_not_upload_fails_the_build() {
    let daemon = Daemon::builder()
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "write-secret")
        .start();
    let builder = builder(&daemon);
    let drv = builder.instantiate(&closure_nix(), "base");
    let error = builder.fails(&["nix-store", "-r", &drv]);
    assert!(error.contains("HTTP error 401"), "{error}");
}
