//! `nix-stored stats`, and what holds for all commands that only read.

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::command_cache::{CommandCache, CommandOutput, path};
use crate::support::daemon::Daemon;
use crate::support::disk::Disk;
use crate::support::wire::Wire;

fn days_ago(time: &Value) -> u64 {
    let time = humantime::parse_rfc3339(time.as_str().expect("a text")).expect("RFC 3339");
    time.elapsed().expect("the time is in the past").as_secs() / 86_400
}

#[test]
fn every_kind_of_object_is_counted() {
    let cache = CommandCache::new();
    cache.add(1, &[], 90);
    cache.add(2, &[1], 30);
    let large = cache.add(3, &[], 5);
    cache.put(&large.narinfo_path.replace(".narinfo", ".ls"), "{}", 5);
    cache.put("log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv", "built", 5);
    cache.put(&path(4).nar_path, path(4).nar, 2);
    cache.put(&path(5).narinfo_path, path(5).narinfo, 5);
    cache.put("not-of-a-cache", "passed over", 5);
    cache.run(&["pin", "old", &path(9).store_path]).is(0);

    let printed = cache
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
        .map(|key| std::fs::metadata(cache.dir().join(key)).expect("present").len())
        .sum();
    let expected = json!({
        "paths": 4, "nars": 4, "other_objects": 2, "bytes": bytes, "nar_bytes": nars,
        "unpacked_bytes": nars, "compression_ratio": 1.0, "orphan_nars": 1,
        "orphan_nar_bytes": orphan, "paths_without_nar": 1, "pins": 1,
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&printed[name], value, "{name}");
    }
    assert_eq!(days_ago(&printed["last_used"]["oldest"]), 90);
    assert_eq!(days_ago(&printed["last_used"]["newest"]), 5);
    assert_eq!(days_ago(&printed["uploaded"]["oldest"]), 90);
    assert_eq!(days_ago(&printed["uploaded"]["newest"]), 5);
    assert!(printed["free_space"].as_u64() > Some(0));

    let largest = printed["largest"].as_array().expect("a list");
    let names: Vec<&Value> = largest.iter().map(|large| &large["store_path"]).collect();
    assert_eq!(names, [3, 2, 1, 5].map(|number| path(number).store_path).each_ref());
    assert_eq!(largest[0]["name"], "sample-3");
    assert_eq!(largest[0]["size"], large.nar.len() + large.narinfo.len() + 2);
    assert_eq!(largest[0]["nar_size"], large.nar.len());

    let retention = &printed["retention"];
    assert_eq!((&retention["max_size"], &retention["over_limit"]), (&json!(1 << 30), &json!(0)));
    assert_eq!(retention["paths"], 0, "the old paths are referenced by used ones");
    assert_eq!(retention["by_reason"][0]["reason"], "orphan");
    assert_eq!(retention["bytes"], orphan);

    let text = cache.run(&["stats"]).is(0).prints("4 paths, 4 NARs and 2 other objects");
    let text = text.prints("1 path without a NAR").prints("1 pin\n").prints("free space: ");
    text.prints(&path(3).store_path).prints("orphan: 0 paths and 1 other object");
}

#[test]
fn an_empty_cache_has_statistics_too() {
    let cache = CommandCache::new();
    let printed = cache.run(&["stats", "--json"]).is(0).json();
    assert_eq!((&printed["paths"], &printed["bytes"]), (&json!(0), &json!(0)));
    assert_eq!(
        (&printed["last_used"], &printed["compression_ratio"]),
        (&Value::Null, &Value::Null)
    );
    cache.run(&["stats"]).is(0).prints("0 paths, 0 NARs and 0 other objects");
}

#[test]
fn stats_work_beside_a_running_daemon() {
    let daemon = Daemon::start();
    let sample = path(1);
    let put = |name: &str, body: &[u8]| Wire::to(&daemon).request("PUT", name, body).status;
    assert_eq!(put(&sample.nar_path, &sample.nar), 201);
    assert_eq!(put(&sample.narinfo_path, sample.narinfo.as_bytes()), 201);
    let printed = CommandCache::at(daemon.dir()).run(&["stats", "--json"]).is(0).json();
    assert_eq!((&printed["paths"], &printed["nars"]), (&json!(1), &json!(1)));
}

/// Every command that only reads.
fn read_only_commands() -> [Vec<String>; 5] {
    let name = path(2).store_path;
    ["stats", "pins", "gc --dry-run --max-age 1d", "gc --explain", "delete --dry-run"].map(|args| {
        let path = (!args.contains("1d") && args.contains("--")).then(|| name.clone());
        args.split(' ').map(str::to_owned).chain(path).collect()
    })
}

#[test]
fn reading_commands_change_nothing() {
    let cache = CommandCache::new();
    cache.add(1, &[], 90);
    cache.add(2, &[1], 90);
    let state = || {
        let entries = std::fs::read_dir(cache.dir()).expect("readable");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        let used = cache.objects().into_iter().map(|key| {
            let metadata = std::fs::metadata(cache.dir().join(key)).expect("present");
            (metadata.accessed().expect("recorded"), metadata.modified().expect("recorded"))
        });
        (names, used.collect::<Vec<_>>())
    };
    let before = state();
    for args in read_only_commands() {
        cache.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).is(0);
        assert_eq!(state(), before, "{args:?}");
    }
}

#[test]
fn a_read_only_cache_can_be_read() {
    let mut disk = Disk::new("size=8m");
    let dir = disk.path().join("cache");
    std::fs::create_dir(&dir).expect("created");
    let cache = CommandCache::at(&dir);
    cache.add(1, &[], 90);
    cache.add(2, &[1], 90);
    cache.run(&["pin", "mine", &path(1).store_path]).is(0);
    disk.remount("ro");
    for args in read_only_commands() {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = cache.command(&args);
        let result = command.current_dir("/").output().expect("the binary starts");
        CommandOutput::of(result).is(0);
    }
    cache.run(&["gc", "--max-age", "1d"]).is(1).prints_error("Read-only file system");
    disk.remount("rw");
}

#[test]
fn root_works_as_the_owner_of_the_cache() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    let cache = CommandCache::new();
    // Only root may enter the parent directory, as with /var/lib/private/.
    let parent = cache.dir().parent().expect("the path has a parent");
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(parent, private).expect("the owner may change it");
    cache.add(1, &[], 90);
    cache.add(2, &[], 90);
    let owner = if geteuid().is_root() { 65_534 } else { geteuid().as_raw() };
    let own = |path: &std::path::Path| chown(path, Some(owner), None).expect("root may change it");
    own(cache.dir());
    own(&cache.dir().join("nar"));
    cache.objects().iter().for_each(|key| own(&cache.dir().join(key)));

    cache.run(&["pin", "mine", &path(1).store_path]).is(0);
    let printed = cache.run(&["gc", "--max-age", "30d", "--json"]).is(0).json();
    assert_eq!(printed["paths"], 1);
    assert!(cache.holds(&path(1)) && !cache.holds(&path(2)));
    let printed = cache.run(&["pins", "--json"]).is(0).json();
    assert_eq!(printed["pins"][0]["closure_paths"], 1);
    for made in [".nix-stored", ".nix-stored/pins", ".nix-stored/pins/mine", ".nix-stored/lock"] {
        let metadata = std::fs::metadata(cache.dir().join(made)).expect("created");
        assert_eq!(metadata.uid(), owner, "{made}");
    }
}

#[test]
fn a_command_creates_no_cache() {
    let cache = CommandCache::new();
    let absent = cache.dir().join("absent");
    let env = [("NIX_STORED_PATH", absent.to_str().expect("UTF-8"))];
    for args in [&["stats"][..], &["gc"], &["pins"], &["unpin", "x"]] {
        cache.run_with(&env, args).is(1).prints_error("there is no cache in");
    }
    assert!(!absent.exists());
}
