//! An unmodified Nix in front of the mirror, and real caches behind it: another nix-stored, nginx over a directory
//! written by Nix, and such a directory itself.

use std::fs;
use std::path::Path;

use super::mirror_of;
use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty, objects};
use crate::support::daemon::Daemon;
use crate::support::fixture::{closure_nix, fixture};
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::scratch::Scratch;
use crate::support::server_process::ServerProcess;

/// A daemon with these paths of the shared store.
fn upstream_with(paths: &[String]) -> Daemon {
    let daemon = Daemon::start();
    fixture().nix().copy_to(daemon.url(), paths);
    daemon
}

/// A daemon with these paths of the shared store, and the read user `reader` with password
/// `read-secret`.
fn private_upstream_with(paths: &[String]) -> Daemon {
    let daemon = Daemon::builder()
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_USER_READ_PASS", "read-secret")
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "write-secret")
        .start();
    fixture().nix().with_netrc("writer", "write-secret").copy_to(daemon.url(), paths);
    daemon
}

/// A directory to which Nix copied these paths of the shared store.
fn directory_with(paths: &[String]) -> Scratch {
    let directory = Scratch::new();
    fixture().nix().copy_to(&format!("file://{}", utf8(directory.path())), paths);
    directory
}

/// Substitutes these paths into an empty store, without cached lookups.
#[track_caller]
fn assert_comes_from(url: &str, paths: &[String]) {
    let copied = fixture().reader();
    copied.copy_from(url, paths);
    copied.assert_has_the_same(&fixture().nix(), paths);
}

/// The key of the narinfo of a store path.
fn narinfo(path: &str) -> String {
    let name = path.strip_prefix("/nix/store/").expect("a store path is in the store");
    format!("{}.narinfo", name.split('-').next().expect("split yields an item"))
}

/// The upstreams recorded in the narinfos of a directory.
fn origins(dir: &Path, paths: &[String]) -> Vec<Option<String>> {
    let origin = |path: &String| {
        let text = fs::read_to_string(dir.join(narinfo(path))).expect("present");
        text.lines().find_map(|line| line.strip_prefix("Upstream: ")).map(str::to_owned)
    };
    paths.iter().map(origin).collect()
}

#[test]
fn paths_from_two_upstreams_are_served_without_them() {
    let fixture = fixture();
    let (ours, theirs) = (fixture.outputs("split"), fixture.outputs("app"));
    let paths = [ours.clone(), theirs.clone()].concat();
    let directory = directory_with(&theirs);
    let (daemon, nginx) = (upstream_with(&ours), ServerProcess::nginx(directory.path()));
    let nginx_url = format!("http://{}", nginx.address());
    let mirror = mirror_of(&[daemon.url(), &nginx_url]).start();

    assert_comes_from(mirror.url(), &paths);
    let origin = Some(daemon.url().to_owned());
    assert!(origins(mirror.dir(), &fixture.nix().closure(&ours)).iter().all(|it| *it == origin));
    let origin = Some(nginx_url);
    assert!(origins(mirror.dir(), &fixture.nix().closure(&theirs)).iter().all(|it| *it == origin));

    daemon.stop();
    drop(nginx);
    assert_comes_from(mirror.url(), &paths);
    let substituted = Nix::new().substituting_from(mirror.url(), fixture.public_key());
    substituted.realise(&paths);
    substituted.assert_has_the_same(&fixture.nix(), &paths);

    // Another daemon on the same directory, without cached facts and upstreams.
    let dir = Scratch::new();
    fs::rename(mirror.dir(), dir.join("cache")).expect("renamed");
    mirror.kill();
    assert_comes_from(Daemon::builder().dir(&dir.join("cache")).start().url(), &paths);
}

#[test]
fn a_directory_is_an_upstream_too() {
    let paths = fixture().all();
    let directory = directory_with(&paths);
    let mirror = mirror_of(&[&format!("file://{}", utf8(directory.path()))]).start();
    assert_comes_from(mirror.url(), &paths);
    drop(directory);
    assert_comes_from(mirror.url(), &paths);
    assert!(assert_consistent(mirror.dir()) >= paths.len());
}

#[test]
fn a_mirror_without_storage_passes_every_object_on() {
    let paths = fixture().outputs("app");
    let upstream = upstream_with(&paths);
    let mirror = mirror_of(&[&format!("{}?store=0", upstream.url())]).start();
    assert_comes_from(mirror.url(), &paths);
    assert_comes_from(mirror.url(), &paths);
    assert_eq!(objects(mirror.dir()), [""; 0]);
    mirror.wait_until("nothing is staged", || {
        crate::support::cache_dir::staging(mirror.dir()).len() == 1
    });
    upstream.stop();
    let reader = fixture().reader();
    reader.fails(&with_paths(&["nix", "copy", "--from", mirror.url()], &paths));
}

#[test]
fn credentials_in_the_url_open_an_upstream() {
    let paths = fixture().outputs("app");
    let upstream = private_upstream_with(&paths);
    let mirror = mirror_of(&[&upstream.url_with("reader", "read-secret")]).start();
    assert_comes_from(mirror.url(), &paths);
    let closure = fixture().nix().closure(&paths);
    let origin = Some(upstream.url().to_owned());
    assert!(
        origins(mirror.dir(), &closure).iter().all(|it| *it == origin),
        "the password is in the narinfo"
    );
    let (_, log) = mirror.stop();
    assert!(!log.contains("read-secret"), "a password in the log:\n{log}");
}

#[test]
fn credentials_in_a_netrc_file_open_an_upstream() {
    let paths = fixture().outputs("app");
    let upstream = private_upstream_with(&paths);
    let scratch = Scratch::new();
    let netrc = scratch.join("netrc");
    fs::write(&netrc, "machine 127.0.0.1 login reader password read-secret\n").expect("written");
    let netrc = ("NIX_STORED_UPSTREAM_NETRC", utf8(&netrc));
    let mirror = mirror_of(&[upstream.url()]).env(netrc.0, netrc.1).start();
    assert_comes_from(mirror.url(), &paths);
}

#[test]
fn an_upstream_that_refuses_the_password_is_a_failure() {
    let paths = fixture().outputs("app");
    let upstream = private_upstream_with(&paths);
    for url in [upstream.url().to_owned(), upstream.url_with("reader", "wrong-secret")] {
        let mirror = mirror_of(&[&url]).start();
        assert_eq!(mirror.get(&format!("/{}", narinfo(&paths[0]))).0, 502);
        let line = mirror.wait_for_log("status 401");
        assert!(line.contains(upstream.url()) && !line.contains("wrong-secret"), "{line}");
    }
}

#[test]
fn only_paths_signed_by_a_trusted_key_are_mirrored() {
    let fixture = fixture();
    let paths = fixture.outputs("app");
    let upstream = upstream_with(&paths);
    let other_key = Nix::new().signing_key("stranger-1").public;
    let path = format!("/{}", narinfo(&paths[0]));

    let mirror =
        mirror_of(&[&format!("{}?trusted-public-keys={other_key}", upstream.url())]).start();
    assert_eq!(mirror.get(&path).0, 404);
    assert_eq!(objects(mirror.dir()), [""; 0]);

    let keys = format!("{other_key}%20{}", fixture.public_key());
    let mirror = mirror_of(&[&format!("{}?trusted-public-keys={keys}", upstream.url())]).start();
    assert_comes_from(mirror.url(), &paths);
}

#[test]
fn a_path_without_a_trusted_signature_comes_from_the_next_upstream() {
    let paths = fixture().outputs("app");
    let (one, other) = (upstream_with(&paths), upstream_with(&paths));
    let other_key = Nix::new().signing_key("stranger-1").public;
    let one = format!("{}?trusted-public-keys={other_key}", one.url());
    let mirror = mirror_of(&[&one, other.url()]).start();
    assert_comes_from(mirror.url(), &paths);
    assert_eq!(origins(mirror.dir(), &paths), [Some(other.url().to_owned())]);
}

#[test]
fn listings_logs_realisations_and_debug_information_are_served_and_stored() {
    let fixture = fixture();
    let (nix, file) = (fixture.nix(), closure_nix());
    let upstream = Daemon::start();
    let paths = [fixture.outputs("app"), fixture.outputs("debug")].concat();
    let parameters = "?write-nar-listing=true&index-debug-info=true";
    nix.copy_to(&format!("{}{parameters}", upstream.url()), &paths);
    let drv = nix.instantiate(&file, "app");
    nix.ok(&["nix", "store", "copy-log", "--to", upstream.url(), &drv]);
    nix.ok(&["nix", "copy", "--to", upstream.url(), "-f", utf8(&file), "addressed"]);

    let sides: Vec<String> = objects(upstream.dir())
        .into_iter()
        .filter(|key| !key.ends_with(".narinfo") && !key.starts_with("nar/"))
        .filter(|key| key != "nix-cache-info")
        .collect();
    for kind in [".ls", "log/", "realisations/", "debuginfo/"] {
        assert!(sides.iter().any(|key| key.contains(kind)), "no {kind} in {sides:?}");
    }
    let mirror = mirror_of(&[upstream.url()]).start();
    for key in &sides {
        let expected = upstream.get(&format!("/{key}"));
        assert_eq!(expected.0, 200, "{key}");
        assert_eq!(mirror.get(&format!("/{key}")), expected, "{key}");
    }
    let log = fixture.reader().ok(&["nix", "log", "--store", mirror.url(), &paths[0]]);
    assert_eq!(log, "building app, and this is its log");
    let substituted = Nix::new().substituting_from(mirror.url(), fixture.public_key());
    assert_eq!(substituted.build(&file, "addressed"), fixture.outputs("addressed"));

    assert_comes_from(mirror.url(), &paths);
    let before: Vec<_> = sides.iter().map(|key| upstream.get(&format!("/{key}"))).collect();
    upstream.stop();
    for (key, expected) in sides.iter().zip(before) {
        assert_eq!(mirror.get(&format!("/{key}")), expected, "{key}");
    }
}

#[test]
fn nix_reads_the_directory_of_a_mirror() {
    let fixture = fixture();
    let paths = fixture.outputs("app");
    let (upstream, dir) = (upstream_with(&paths), Scratch::new());
    let mirror = mirror_of(&[upstream.url()]).dir(dir.path()).start();
    assert_comes_from(mirror.url(), &paths);
    let closure = fixture.nix().closure(&paths);
    assert!(origins(dir.path(), &closure).iter().all(Option::is_some));

    // Nix ignores the unknown line.
    let file_url = format!("file://{}", utf8(dir.path()));
    let command = ["nix", "path-info", "-r", "--json", "--store", &file_url];
    let info = fixture.reader().ok(&with_paths(&command, &paths));
    assert!(closure.iter().all(|path| info.contains(path.as_str())), "{info}");
    assert!(!info.contains("\"valid\":false"), "{info}");
    mirror.stop();
    upstream.stop();
    assert_comes_from(&file_url, &paths);
}

#[test]
fn an_uploaded_path_is_no_longer_marked_as_mirrored() {
    let fixture = fixture();
    let paths = fixture.outputs("app");
    let closure = fixture.nix().closure(&paths);
    let upstream = directory_with(&paths);
    let mirror = mirror_of(&[&format!("file://{}", utf8(upstream.path()))])
        .env("NIX_STORED_UPSTREAM_ABSENT_TTL", "1s")
        .start();

    // Nix uploads only paths that it believes to be absent, and the mirror would report this one as
    // present. So Nix first caches a negative lookup.
    let nix = fixture.nix().with("narinfo-cache-negative-ttl", "3600");
    for path in &closure {
        let file = upstream.join(&narinfo(path));
        fs::rename(&file, file.with_extension("away")).expect("present");
        nix.fails(&["nix", "path-info", "--store", mirror.url(), path]);
        fs::rename(file.with_extension("away"), &file).expect("present");
    }
    mirror.wait_until("the mirror sends another request", || {
        closure.iter().all(|path| mirror.get(&format!("/{}", narinfo(path))).0 == 200)
    });
    assert_comes_from(mirror.url(), &paths);
    assert!(origins(mirror.dir(), &closure).iter().all(Option::is_some));

    nix.copy_to(mirror.url(), &paths);
    assert!(origins(mirror.dir(), &closure).iter().all(Option::is_none));
    assert_comes_from(mirror.url(), &paths);
    assert_staging_is_empty(mirror.dir());
}
