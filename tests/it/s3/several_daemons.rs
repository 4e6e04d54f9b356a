//! Several independent daemons on one bucket see each other's changes within seconds.

use std::time::{Duration, Instant};

use super::server::{TestServer, assert_consistent, get, head, on_every_server, over, upload};
use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::{utf8, with_paths};
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};

/// Longer than the daemon caches anything, with time to spare for a busy machine.
const SOON: Duration = Duration::from_secs(10);

on_every_server! {
    an_upload_to_one_daemon_is_served_by_the_other
    a_change_by_one_daemon_is_served_by_the_other_within_seconds
    one_path_can_be_uploaded_to_two_daemons_at_once
}

#[track_caller]
fn soon(what: &str, state: impl Fn() -> bool) {
    let started = Instant::now();
    while !state() {
        assert!(started.elapsed() < SOON, "timeout while waiting until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn an_upload_to_one_daemon_is_served_by_the_other(server: &TestServer) {
    let bucket = server.bucket();
    let (one, two) = (over(&bucket).start(), over(&bucket).start());
    let (asked, unasked) = (sample(1, &Noise::new(1).bytes(300_000)), sample(2, b"two"));
    // Requested before it is uploaded.
    assert_eq!(get(&two, &asked.narinfo_path).status, 404);
    assert_eq!(head(&two, &asked.nar_path).status, 404);
    upload(&one, &asked);
    upload(&one, &unasked);
    let has = |sample: &Sample| {
        get(&two, &sample.narinfo_path).body == sample.narinfo.as_bytes()
            && get(&two, &sample.nar_path).body == sample.nar
    };
    assert!(has(&unasked), "a path without a cached lookup is visible at once");
    soon("what was absent is seen", || has(&asked));
}

fn a_change_by_one_daemon_is_served_by_the_other_within_seconds(server: &TestServer) {
    let (bucket, fixture) = (server.bucket(), fixture());
    let (one, two) = (over(&bucket).start(), over(&bucket).start());
    let app = fixture.output("app");
    fixture.nix().copy_to(one.url(), std::slice::from_ref(&app));
    let narinfo = format!("/{}", crate::support::closures::narinfo_of(&app));
    for _ in 0..3 {
        assert_eq!(get(&two, &narinfo).status, 200);
    }
    let nix = fixture.nix();
    let key = nix.signing_key("later-1");
    nix.ok(&["nix", "store", "sign", "--store", one.url(), "-k", utf8(&key.secret), &app]);
    let signed = |daemon: &Daemon| get(daemon, &narinfo).text().contains("Sig: later-1:");
    assert!(signed(&one));
    soon("it is signed at the other", || signed(&two));

    let sample = sample(1, b"one");
    upload(&one, &sample);
    assert_eq!(get(&two, &sample.narinfo_path).status, 200);
    super::commands::run(&bucket, &["delete", &sample.store_path]).is(0);
    soon("it is gone", || {
        [&one, &two].iter().all(|daemon| get(daemon, &sample.narinfo_path).status == 404)
    });
}

fn one_path_can_be_uploaded_to_two_daemons_at_once(server: &TestServer) {
    let (bucket, fixture) = (server.bucket(), fixture());
    let (one, two) = (over(&bucket).start(), over(&bucket).start());
    let all = fixture.all();
    std::thread::scope(|scope| {
        for daemon in [&one, &two, &one, &two] {
            let all = &all;
            scope.spawn(move || {
                let words = ["nix", "copy", "--to", daemon.url()];
                // Nix 2.8 fails if a path that it has just found absent is present at the upload.
                let nix = fixture.nix().with("narinfo-cache-negative-ttl", "3600");
                let output = nix.run(&with_paths(&words, all));
                let printed = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{printed}\n{}", daemon.log());
            });
        }
    });
    assert_consistent(&bucket);
    assert_eq!(server.unfinished(&bucket), 0);
    for daemon in [&one, &two] {
        let copied = fixture.reader();
        copied.copy_from(daemon.url(), &all);
        copied.assert_has_the_same(&fixture.nix(), &all);
    }
}
