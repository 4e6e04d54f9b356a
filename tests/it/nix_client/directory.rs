//! The directory is a `file://` cache of Nix: what Nix wrote is served unchanged, and Nix reads what the daemon
//! stored.

use std::fs;

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, utf8};
use crate::support::scratch::Scratch;

#[test]
fn a_directory_written_by_nix_is_served_unchanged() {
    let (dir, fixture) = (Scratch::new(), fixture());
    let paths = fixture.all();
    let file_url = format!("file://{}", utf8(dir.path()));
    fixture.nix().copy_to(&file_url, &paths);

    let daemon = Daemon::builder().dir(dir.path()).start();
    let copied = fixture.reader();
    copied.copy_from(daemon.url(), &paths);
    copied.assert_has_the_same(&fixture.nix(), &paths);
    let substituted = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    substituted.realise(&paths);
    substituted.assert_has_the_same(&fixture.nix(), &paths);
}

#[test]
fn nix_reads_the_directory_without_the_daemon() {
    let (dir, fixture) = (Scratch::new(), fixture());
    let paths = fixture.all();
    let daemon = Daemon::builder().dir(dir.path()).start();
    let parameters = "?write-nar-listing=true&index-debug-info=true";
    fixture.nix().copy_to(&format!("{}{parameters}", daemon.url()), &paths);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{status}\n{log}");

    let file_url = format!("file://{}", utf8(dir.path()));
    let copied = fixture.reader();
    copied.copy_from(&file_url, &paths);
    copied.assert_has_the_same(&fixture.nix(), &paths);
    let substituted = Nix::new().substituting_from(&file_url, fixture.public_key());
    substituted.realise(&paths);
    substituted.assert_has_the_same(&fixture.nix(), &paths);
}

#[test]
fn the_directory_and_the_daemon_have_the_same_cache_info() {
    let scratch = Scratch::new();
    let file = scratch.join("nix-cache-info");
    let start = |priority: &str| {
        Daemon::builder().dir(scratch.path()).env("NIX_STORED_PRIORITY", priority).start()
    };
    let daemon = start("41");
    daemon.wait_for_log("wrote nix-cache-info");
    let text = daemon.get("/nix-cache-info").1;
    assert!(String::from_utf8_lossy(&text).contains("Priority: 41\n"));
    assert_eq!(fs::read(&file).expect("written"), text);
    drop(daemon);

    // Nix writes fewer fields, and users may write more.
    let theirs = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 41\nSomething: else\n";
    fs::write(&file, theirs).expect("written");
    let daemon = start("41");
    daemon.get("/health");
    drop(daemon);
    assert_eq!(fs::read_to_string(&file).expect("present"), theirs);
    for other in ["StoreDir: /nix/store\n", "StoreDir: /nix/store\nPriority: 10\n"] {
        fs::write(&file, other).expect("written");
        let daemon = start("41");
        daemon.wait_for_log("replaced nix-cache-info");
        assert_eq!(fs::read(&file).expect("present"), text);
    }

    // If the file cannot be written, everything else is served.
    fs::remove_file(&file).expect("present");
    fs::create_dir(&file).expect("created");
    let daemon = start("41");
    daemon.wait_for_log("cannot write nix-cache-info");
    assert_eq!(daemon.get("/nix-cache-info"), (200, text));
}

#[cfg(any(feature = "s3", feature = "upstream"))]
#[test]
fn a_web_server_serves_what_the_daemon_stored() {
    let (dir, fixture) = (Scratch::new(), fixture());
    let paths = fixture.all();
    let daemon = Daemon::builder().dir(dir.path()).start();
    fixture.nix().copy_to(daemon.url(), &paths);
    drop(daemon);
    let server = crate::support::server_process::ServerProcess::nginx(dir.path());
    let url = format!("http://{}", server.address());
    let copied = fixture.reader();
    copied.copy_from(&url, &paths);
    copied.assert_has_the_same(&fixture.nix(), &paths);
    let substituted = Nix::new().substituting_from(&url, fixture.public_key());
    substituted.realise(&paths);
    substituted.assert_has_the_same(&fixture.nix(), &paths);
}

#[test]
fn nix_and_the_daemon_can_take_turns_in_one_directory() {
    let (dir, fixture) = (Scratch::new(), fixture());
    let file_url = format!("file://{}", utf8(dir.path()));
    let daemon = Daemon::builder().dir(dir.path()).start();
    fixture.nix().copy_to(daemon.url(), &fixture.outputs("split"));
    fixture.nix().copy_to(&file_url, &fixture.outputs("app"));
    fixture.nix().copy_to(daemon.url(), &fixture.outputs("odd"));

    let paths = [fixture.outputs("split"), fixture.outputs("app"), fixture.outputs("odd")].concat();
    for url in [daemon.url(), &file_url] {
        let reader = fixture.reader();
        reader.copy_from(url, &paths);
        reader.assert_has_the_same(&fixture.nix(), &paths);
    }
}
