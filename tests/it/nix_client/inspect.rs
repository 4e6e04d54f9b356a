//! Requests of Nix other than copies, and the queries before a copy.

use crate::support::daemon::{Daemon, LoggedRequest, requests};
use crate::support::fixture::{closure_nix, fixture};
use crate::support::nix::{Nix, with_paths};
use crate::support::scratch::Scratch;

#[test]
fn a_second_copy_uploads_nothing() {
    let (dir, fixture) = (Scratch::new(), fixture());
    let paths = fixture.all();
    // each time from a new home without cached lookups, and to a new daemon
    let copy = || {
        let daemon = Daemon::builder().dir(dir.path()).env("NIX_STORED_LOG_LEVEL", "debug").start();
        fixture.nix().copy_to(daemon.url(), &paths);
        let (status, log) = daemon.stop();
        assert!(status.success(), "{status}\n{log}");
        requests(&log)
    };
    let mut expected: Vec<String> =
        fixture.nix().closure(&paths).iter().map(|path| narinfo(path)).collect();
    expected.sort();

    let first = copy();
    let mut uploaded: Vec<String> = names(&first, "PUT", ".narinfo");
    uploaded.sort();
    assert_eq!(
        uploaded, expected,
        "the first copy uploads each narinfo, and the log has each of them once"
    );

    let second = copy();
    let mut asked = names(&second, "GET", ".narinfo");
    asked.sort();
    assert_eq!(asked, expected, "the second copy asks for each narinfo");
    assert_eq!(names(&second, "PUT", ""), [""; 0], "and uploads nothing");
}

/// The key of a store path's narinfo.
fn narinfo(path: &str) -> String {
    let name = path.strip_prefix("/nix/store/").expect("a store path is in the store");
    format!("/{}.narinfo", name.split('-').next().expect("split yields an item"))
}

/// The paths of the requests with this method whose path ends like this.
fn names(requests: &[LoggedRequest], method: &str, ending: &str) -> Vec<String> {
    let chosen = requests
        .iter()
        .filter(|request| request.method == method && request.path.ends_with(ending));
    chosen.map(|request| request.path.clone()).collect()
}

#[test]
fn a_build_log_can_be_uploaded_and_read() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let nix = fixture.nix();
    let app = fixture.output("app");
    let drv = nix.instantiate(&closure_nix(), "app");
    nix.copy_to(daemon.url(), std::slice::from_ref(&app));
    nix.ok(&["nix", "store", "copy-log", "--to", daemon.url(), &drv]);

    // Nix finds the log of an output by the deriver in its narinfo
    let expected = "building app, and this is its log";
    assert_eq!(fixture.reader().ok(&["nix", "log", "--store", daemon.url(), &app]), expected);

    // with only the derivation, Nix asks the substituters
    let reader = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    assert_eq!(reader.instantiate(&closure_nix(), "app"), drv);
    assert_eq!(reader.ok(&["nix", "log", &drv]), expected);
}

#[test]
fn path_info_shows_an_uploaded_path() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let app = fixture.outputs("app");
    fixture.nix().copy_to(daemon.url(), &app);

    let reader = fixture.reader();
    let info = reader.ok(&with_paths(&["nix", "path-info", "--store", daemon.url(), "-r"], &app));
    let mut paths: Vec<String> = info.lines().map(str::to_owned).collect();
    paths.sort();
    assert_eq!(paths, fixture.nix().closure(&app));

    let json =
        reader.ok(&with_paths(&["nix", "path-info", "--store", daemon.url(), "--json"], &app));
    for field in [
        "narHash",
        "narSize",
        "references",
        "deriver",
        "signatures",
        "downloadHash",
        "downloadSize",
        "url",
    ] {
        assert!(json.contains(&format!("\"{field}\":")), "no {field} in {json}");
    }
}

#[test]
fn path_info_reports_an_absent_path() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let error = fixture.reader().fails(&[
        "nix",
        "path-info",
        "--store",
        daemon.url(),
        &fixture.output("app"),
    ]);
    assert!(error.contains("is not valid"), "{error}");
    assert!(!error.contains("retrying"), "{error}");
}

#[test]
fn nix_store_ls_and_cat_work() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let odd = fixture.output("odd");
    fixture.nix().copy_to(daemon.url(), std::slice::from_ref(&odd));

    let reader = fixture.reader();
    let listing = reader.ok(&["nix", "store", "ls", "-lR", "--store", daemon.url(), &odd]);
    for part in
        ["-r-xr-xr-x", "./deep/er/tool", "./dangling -> /does/not/exist", "./ünïcödé/naïve file"]
    {
        assert!(listing.contains(part), "no {part} in {listing}");
    }
    let content = reader.ok(&[
        "nix",
        "store",
        "cat",
        "--store",
        daemon.url(),
        &format!("{odd}/ünïcödé/naïve file"),
    ]);
    assert_eq!(content, "x");
}

#[test]
fn a_cache_can_be_verified_where_it_is() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let paths = fixture.all();
    fixture.nix().copy_to(daemon.url(), &paths);
    fixture
        .reader()
        .ok(&with_paths(&["nix", "store", "verify", "-r", "--store", daemon.url()], &paths));
}

#[test]
fn a_signature_added_later_is_enough_to_substitute() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let app = fixture.outputs("app");
    let nix = fixture.nix();
    nix.copy_to(daemon.url(), &app);

    // `nix store sign` on a cache reads each narinfo, and uploads it again with another signature
    let key = nix.signing_key("later-1");
    let secret = key.secret.display().to_string();
    nix.ok(&with_paths(
        &["nix", "store", "sign", "-r", "-k", &secret, "--store", daemon.url()],
        &app,
    ));

    for key in [key.public.as_str(), fixture.public_key()] {
        let reader = fixture.reader().substituting_from(daemon.url(), key);
        reader.realise(&app);
        reader.assert_has_the_same(&fixture.nix(), &app);
    }
}
