//! The directory is a `file://` cache of Nix's own: what Nix wrote there is served as it is, and
//! what the daemon stores can be read without the daemon.

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::nix::{Nix, utf8};
use crate::support::scratch::Scratch;

#[test]
fn a_directory_that_nix_wrote_is_served_as_it_is() {
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
fn what_the_daemon_stores_nix_reads_without_it() {
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
