//! `nix-stored stats`, and what holds for all commands that only read.

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::given::{Ended, Given, path};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::wire::Wire;

fn days_ago(time: &Value) -> u64 {
    let time = humantime::parse_rfc3339(time.as_str().expect("a text")).expect("RFC 3339");
    time.elapsed().expect("in the past").as_secs() / 86_400
}

#[test]
fn every_kind_of_object_is_counted() {
    let cache = Given::new();
    cache.add(1, &[], 90);
    cache.add(2, &[1], 30);
    let large = cache.add(3, &[], 5);
    cache.put(&large.narinfo_path.replace(".narinfo", ".ls"), "{}", 5);
    cache.put("log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv", "built", 5);
    cache.put(&path(4).nar_path, path(4).nar, 2);
    cache.put(&path(5).narinfo_path, path(5).narinfo, 5);
    cache.put("not-of-a-cache", "passed over", 5);
    cache.run(&["pin", "old", &path(9).store_path]).is(0);

    let told = cache
        .run_with(
            &[("NIX_STORED_MAX_AGE", "60d"), ("NIX_STORED_MAX_SIZE", "1G")],
            &["stats", "--json"],
        )
        .is(0)
        .json();
    let nars: usize = (1..=3).map(|number| path(number).nar.len()).sum();
    let orphan = path(4).nar.len();
    let bytes: u64 = cache
        .objects()
        .iter()
        .filter(|key| *key != "not-of-a-cache")
        .map(|key| std::fs::metadata(cache.dir().join(key)).expect("it is there").len())
        .sum();
    let expected = json!({
        "paths": 4, "nars": 4, "other_objects": 2, "bytes": bytes, "nar_bytes": nars,
        "unpacked_bytes": nars, "compression_ratio": 1.0, "orphan_nars": 1,
        "orphan_nar_bytes": orphan, "paths_without_nar": 1, "pins": 1,
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&told[name], value, "{name}");
    }
    assert_eq!(days_ago(&told["last_used"]["oldest"]), 90);
    assert_eq!(days_ago(&told["last_used"]["newest"]), 5);
    assert_eq!(days_ago(&told["uploaded"]["oldest"]), 90);
    assert_eq!(days_ago(&told["uploaded"]["newest"]), 5);
    assert!(told["free_space"].as_u64() > Some(0));

    let largest = told["largest"].as_array().expect("a list");
    let names: Vec<&Value> = largest.iter().map(|large| &large["store_path"]).collect();
    assert_eq!(names, [3, 2, 1, 5].map(|number| path(number).store_path).each_ref());
    assert_eq!(largest[0]["name"], "sample-3");
    assert_eq!(largest[0]["size"], large.nar.len() + large.narinfo.len() + 2);
    assert_eq!(largest[0]["nar_size"], large.nar.len());

    let retention = &told["retention"];
    assert_eq!((&retention["max_size"], &retention["over_limit"]), (&json!(1 << 30), &json!(0)));
    assert_eq!(retention["paths"], 0, "what is old is needed by what is not");
    assert_eq!(retention["by_reason"][0]["reason"], "orphan");
    assert_eq!(retention["bytes"], orphan);

    let text = cache.run(&["stats"]).is(0).says("4 paths, 4 NARs and 2 other objects");
    let text = text.says("1 path without a NAR").says("1 pin\n").says("free space: ");
    text.says(&path(3).store_path).says("orphan: 0 paths and 1 other object");
}

#[test]
fn an_empty_cache_has_statistics_too() {
    let cache = Given::new();
    let told = cache.run(&["stats", "--json"]).is(0).json();
    assert_eq!((&told["paths"], &told["bytes"]), (&json!(0), &json!(0)));
    assert_eq!((&told["last_used"], &told["compression_ratio"]), (&Value::Null, &Value::Null));
    cache.run(&["stats"]).is(0).says("0 paths, 0 NARs and 0 other objects");
}

#[test]
fn stats_work_beside_a_running_daemon() {
    let daemon = Daemon::start();
    let sample = path(1);
    let put = |name: &str, body: &[u8]| Wire::to(&daemon).request("PUT", name, body).status;
    assert_eq!(put(&sample.nar_path, &sample.nar), 201);
    assert_eq!(put(&sample.narinfo_path, sample.narinfo.as_bytes()), 201);
    let told = Given::at(daemon.dir()).run(&["stats", "--json"]).is(0).json();
    assert_eq!((&told["paths"], &told["nars"]), (&json!(1), &json!(1)));
}

/// Every command that only looks.
fn looking() -> [Vec<String>; 5] {
    let name = path(2).store_path;
    ["stats", "pins", "gc --dry-run --max-age 1d", "gc --explain", "delete --dry-run"].map(|args| {
        let path = (!args.contains("1d") && args.contains("--")).then(|| name.clone());
        args.split(' ').map(str::to_owned).chain(path).collect()
    })
}

#[test]
fn reading_commands_change_nothing() {
    let cache = Given::new();
    cache.add(1, &[], 90);
    cache.add(2, &[1], 90);
    let state = || {
        let entries = std::fs::read_dir(cache.dir()).expect("it can be read");
        let names = entries.map(|entry| entry.expect("it can be read").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        let used = cache.objects().into_iter().map(|key| {
            let metadata = std::fs::metadata(cache.dir().join(key)).expect("it is there");
            (metadata.accessed().expect("recorded"), metadata.modified().expect("recorded"))
        });
        (names, used.collect::<Vec<_>>())
    };
    let before = state();
    for args in looking() {
        cache.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).is(0);
        assert_eq!(state(), before, "{args:?}");
    }
}

#[test]
fn a_read_only_cache_can_be_read() {
    let mut disk = Disk::new("size=8m");
    let dir = disk.path().join("cache");
    std::fs::create_dir(&dir).expect("made");
    let cache = Given::at(&dir);
    cache.add(1, &[], 90);
    cache.add(2, &[1], 90);
    cache.run(&["pin", "mine", &path(1).store_path]).is(0);
    disk.remount("ro");
    for args in looking() {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = cache.command(&args);
        let ended = command.current_dir("/").output().expect("the binary starts");
        Ended::of(ended).is(0);
    }
    cache.run(&["gc", "--max-age", "1d"]).is(1).complains("Read-only file system");
    disk.remount("rw");
}

#[test]
fn root_works_as_the_owner_of_the_cache() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    let cache = Given::new();
    // The way there is root's alone, as /var/lib/private/ is.
    let parent = cache.dir().parent().expect("it is in a folder");
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(parent, private).expect("its owner may");
    cache.add(1, &[], 90);
    cache.add(2, &[], 90);
    let owner = if geteuid().is_root() { 65_534 } else { geteuid().as_raw() };
    let own = |path: &std::path::Path| chown(path, Some(owner), None).expect("root may");
    own(cache.dir());
    own(&cache.dir().join("nar"));
    cache.objects().iter().for_each(|key| own(&cache.dir().join(key)));

    cache.run(&["pin", "mine", &path(1).store_path]).is(0);
    let told = cache.run(&["gc", "--max-age", "30d", "--json"]).is(0).json();
    assert_eq!(told["paths"], 1);
    assert!(cache.holds(&path(1)) && !cache.holds(&path(2)));
    let told = cache.run(&["pins", "--json"]).is(0).json();
    assert_eq!(told["pins"][0]["closure_paths"], 1);
    for made in [".nix-stored", ".nix-stored/pins", ".nix-stored/pins/mine", ".nix-stored/lock"] {
        let metadata = std::fs::metadata(cache.dir().join(made)).expect("it was made");
        assert_eq!(metadata.uid(), owner, "{made}");
    }
}

#[test]
fn a_command_creates_no_cache() {
    let cache = Given::new();
    let absent = cache.dir().join("absent");
    let env = [("NIX_STORED_PATH", absent.to_str().expect("UTF-8"))];
    for args in [&["stats"][..], &["gc"], &["pins"], &["unpin", "x"]] {
        cache.run_with(&env, args).is(1).complains("there is no cache in");
    }
    assert!(!absent.exists());
}
