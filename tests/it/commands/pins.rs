//! `nix-stored pin`, `unpin` and `pins`.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::command_cache::{CommandCache, path};

fn name(number: u8) -> String {
    path(number).store_path
}

#[test]
fn a_pinned_path_keeps_its_closure_until_it_is_unpinned() {
    let cache = CommandCache::new();
    cache.add(1, &[], 90);
    cache.add(2, &[1], 90);
    cache.add(3, &[], 90);
    cache.run(&["pin", "release", &name(2)]).is(0).prints("the pin release keeps 1 path");
    let printed = cache.run(&["gc", "--max-age", "30d", "--json"]).is(0).json();
    assert_eq!(printed["paths"], 1);
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)) && !cache.holds(&path(3)));

    // Pinning counted as a use.
    for sample in [path(1), path(2)] {
        cache.age(&sample.narinfo_path, 90);
        cache.age(&sample.nar_path, 90);
    }
    cache.run(&["gc", "--max-age", "30d"]).is(0);
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
    let printed = cache.run(&["unpin", "release", "--json"]).is(0).json();
    assert_eq!(printed, json!({"name": "release", "removed": true}));
    cache.run(&["gc", "--max-age", "30d"]).is(0);
    assert!(!cache.holds(&path(1)) && !cache.holds(&path(2)));
}

#[test]
fn pins_are_listed_with_the_size_of_their_closures() {
    let cache = CommandCache::new();
    cache.run(&["pins"]).is(0).prints("there are no pins");
    assert_eq!(cache.run(&["pins", "--json"]).is(0).json(), json!({"pins": []}));
    let sizes = [cache.add(1, &[], 0), cache.add(2, &[1], 0), cache.add(3, &[1], 0)]
        .map(|sample| sample.nar.len() + sample.narinfo.len());
    cache.run(&["pin", "one", &name(2)]).is(0);
    let result = cache.run(&["pin", "both", &name(2), &name(3), &name(9)]).is(0);
    result.prints(&format!("{} is not in the cache yet", name(9)));

    let printed = cache.run(&["pins", "--json"]).is(0).json();
    let held = |number: u8, present: bool| json!({"store_path": name(number), "present": present});
    let expected = json!({"pins": [
        {
            "name": "both", "store_paths": [held(2, true), held(3, true), held(9, false)],
            "closure_paths": 3, "closure_bytes": sizes.iter().sum::<usize>(),
        },
        {
            "name": "one", "store_paths": [held(2, true)],
            "closure_paths": 2, "closure_bytes": sizes[0] + sizes[1],
        },
    ]});
    assert_eq!(printed, expected);
    let text =
        cache.run(&["pins"]).is(0).prints("both: keeps 3 paths").prints("one: keeps 2 paths");
    text.prints(&format!("{}  (not in the cache)", name(9)));
}

#[test]
fn a_pin_replaces_one_of_the_same_name() {
    let cache = CommandCache::new();
    cache.add(1, &[], 0);
    let printed = cache.run(&["pin", "x", &name(1), "--json"]).is(0).json();
    assert_eq!(printed["replaced"], false);
    let printed = cache.run(&["pin", "x", &name(2), "--json"]).is(0).json();
    assert_eq!(printed["replaced"], true);
    assert_eq!(printed["store_paths"], json!([{"store_path": name(2), "present": false}]));
    let printed = cache.run(&["pins", "--json"]).is(0).json();
    assert_eq!(printed["pins"][0]["store_paths"][0]["store_path"], name(2));
}

#[test]
fn a_result_link_pins_the_path_it_points_to() {
    let cache = CommandCache::new();
    cache.add(1, &[], 0);
    symlink(name(1), cache.dir().join("result")).expect("created");
    let printed = cache.run(&["pin", "x", "./result", "--json"]).is(0).json();
    assert_eq!(printed["store_paths"], json!([{"store_path": name(1), "present": true}]));
    cache.run(&["pin", "x", "./nothing"]).is(64).prints_error("is not a store path");
    // A pin contains full store paths, also of paths that are absent.
    cache.run(&["pin", "x", &name(1)["/nix/store/".len()..][..32]]).is(64);
}

#[test]
fn an_unknown_pin_is_reported() {
    let cache = CommandCache::new();
    cache.run(&["unpin", "none"]).is(2).prints_error("there is no pin none");
    let printed = cache.run(&["unpin", "none", "--json"]).is(2).json();
    assert_eq!(printed, json!({"name": "none", "removed": false}));
    cache.run(&["unpin", "../lock"]).is(64).prints_error("is not a valid name for a pin");
    cache.run(&["pin", "a/b", &name(1)]).is(64).prints_error("is not a valid name for a pin");
    cache.run(&["pin", "a"]).is(64).prints_error("STORE-PATH");
    cache.put(".nix-stored/pins/broken", "nonsense\n", 0);
    for args in [&["pins"][..], &["stats"], &["gc"]] {
        cache.run(args).is(1).prints_error("the pin broken has a line that is not a store path");
    }
    cache.run(&["unpin", "broken"]).is(0);
    cache.run(&["pins"]).is(0);
}
