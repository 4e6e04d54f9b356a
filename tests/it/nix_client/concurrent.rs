//! Concurrent uploads of the same paths by several builders.

use std::sync::Barrier;
use std::thread;

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::Nix;

/// A client that caches negative lookups, which is Nix's default. Without that cache, Nix 2.8 looks
/// again just before each upload, and fails with "coroutine has finished" if another client was
/// faster.
fn forgetting_nothing(nix: &Nix) -> Nix {
    nix.fresh_home().with("narinfo-cache-negative-ttl", "3600")
}

/// Four concurrent uploads, each with its own home and store URL parameters.
fn four_at_once(daemon: &Daemon, source: &Nix, parameters: [&str; 4], paths: &[String]) {
    let together = Barrier::new(4);
    thread::scope(|scope| {
        for parameters in parameters {
            let (together, nix) = (&together, forgetting_nothing(source));
            scope.spawn(move || {
                together.wait();
                nix.copy_to(&format!("{}{parameters}", daemon.url()), paths);
            });
        }
    });
}

/// Checks that both ways of reading work, and that the cache is consistent.
#[track_caller]
fn assert_whole(daemon: &Daemon, source: &Nix, paths: &[String]) {
    let fixture = fixture();
    let copied = fixture.reader();
    copied.copy_from(daemon.url(), paths);
    copied.assert_has_the_same(source, paths);
    let substituted = Nix::new().substituting_from(daemon.url(), fixture.public_key());
    substituted.realise(paths);
    substituted.assert_has_the_same(source, paths);
}

#[test]
fn four_uploads_of_the_same_closure_all_succeed() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let paths = fixture.all();
    four_at_once(&daemon, &fixture.nix(), [""; 4], &paths);
    assert_whole(&daemon, &fixture.nix(), &paths);
}

#[test]
fn four_uploads_of_the_same_closure_in_four_compressions_all_succeed() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let paths = fixture.all();
    let parameters = ["", "?compression=zstd", "?compression=none", "?compression=bzip2"];
    four_at_once(&daemon, &fixture.nix(), parameters, &paths);
    assert_whole(&daemon, &fixture.nix(), &paths);
}

#[test]
fn four_stores_upload_overlapping_closures_at_once() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let together = Barrier::new(4);
    let attributes = [["app", "split"], ["split", "odd"], ["odd", "debug"], ["debug", "app"]];
    thread::scope(|scope| {
        for (number, attributes) in attributes.into_iter().enumerate() {
            let (together, daemon) = (&together, &daemon);
            scope.spawn(move || {
                let shared: Vec<String> =
                    attributes.iter().flat_map(|name| fixture.outputs(name)).collect();
                let store = fixture.reader();
                store.copy_from_store(&fixture.nix(), &shared);
                // the same forty paths in every store, and forty different ones
                let same = store.add_tiny_files("same", 40);
                let own = store.add_tiny_files(&format!("own-{number}"), 40);
                let paths = [shared, same, own].concat();
                together.wait();
                forgetting_nothing(&store).copy_to(daemon.url(), &paths);

                let reader = fixture.reader();
                reader.copy_from(daemon.url(), &paths);
                reader.assert_has_the_same(&store, &paths);
            });
        }
    });
    assert_whole(&daemon, &fixture.nix(), &fixture.all()[..1]);
}
