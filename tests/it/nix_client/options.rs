//! Store URL parameters that change the uploaded objects.

use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;

/// Uploads a closure with this compression and substitutes it. Returns the names of the NARs.
#[track_caller]
fn round_trip_compressed(compression: &str, extension: &str) {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let paths = fixture.all();
    fixture.nix().copy_to(&format!("{}?compression={compression}", daemon.url()), &paths);

    let nars = daemon.names_in("nar");
    let expected = fixture.nix().closure(&paths).len();
    assert_eq!(nars.len(), expected, "one NAR a path: {nars:?}");
    for name in nars {
        let (_, ending) = name.split_once('.').expect("a NAR has an extension");
        assert_eq!(ending, extension);
    }

    let reader = fixture.reader();
    reader.copy_from(daemon.url(), &paths);
    reader.assert_has_the_same(&fixture.nix(), &paths);
}

#[test]
fn xz_is_accepted_and_served() {
    round_trip_compressed("xz", "nar.xz");
}

#[test]
fn zstd_is_accepted_and_served() {
    round_trip_compressed("zstd", "nar.zst");
}

#[test]
fn bzip2_is_accepted_and_served() {
    round_trip_compressed("bzip2", "nar.bz2");
}

#[test]
fn br_is_accepted_and_served() {
    round_trip_compressed("br", "nar.br");
}

#[test]
fn none_is_accepted_and_served() {
    round_trip_compressed("none", "nar");
}

#[test]
fn gzip_is_accepted_and_served() {
    // Nix gives gzip no extension
    round_trip_compressed("gzip", "nar");
}

#[test]
fn write_nar_listing_leaves_a_listing_beside_each_narinfo() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let paths = fixture.all();
    fixture.nix().copy_to(&format!("{}?write-nar-listing=true", daemon.url()), &paths);

    for path in fixture.nix().closure(&paths) {
        let (status, listing) = daemon.get(&format!("/{}.ls", hash_part(&path)));
        let listing = String::from_utf8(listing).expect("a listing is JSON");
        assert_eq!(status, 200, "{path}: {listing}");
        assert!(listing.contains(r#""version":1"#), "{path}: {listing}");
    }
    let (_, listing) = daemon.get(&format!("/{}.ls", hash_part(&fixture.output("odd"))));
    let listing = String::from_utf8(listing).expect("a listing is JSON");
    assert!(listing.contains("ünïcödé"), "{listing}");
}

#[test]
fn index_debug_info_makes_debug_info_findable_by_build_id() {
    let (daemon, fixture) = (Daemon::start(), fixture());
    let debug = fixture.outputs("debug");
    let url = format!("{}?index-debug-info=true", daemon.url());
    fixture.nix().copy_to(&url, &debug);

    // Nix uploads one name, and debuggers request the other
    let id = "c0ffee0123456789abcdef0123456789abcdef01";
    for name in [format!("/debuginfo/{id}.debug"), format!("/debuginfo/{id}")] {
        let (status, link) = daemon.get(&name);
        let link = String::from_utf8(link).expect("a link to debug information is JSON");
        assert_eq!(status, 200, "{name}: {link}");
        assert!(link.contains(r#""archive":"../nar/"#), "{name}: {link}");
        assert!(link.contains("lib/debug/.build-id/c0/ffee"), "{name}: {link}");
    }
    assert_eq!(daemon.names_in("debuginfo"), [format!("{id}.debug")], "the name is Nix's own");
}

/// The hash part of a store path.
fn hash_part(path: &str) -> &str {
    let name = path.strip_prefix("/nix/store/").expect("a store path is in the store");
    name.split('-').next().expect("split yields an item")
}
