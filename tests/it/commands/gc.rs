//! `nix-stored gc`: the collection of the daemon, on demand.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix_stored::cache::{Actor, Cache, GRACE};
use nix_stored::config::Admission;
use nix_stored::inventory::Progress;
use nix_stored::nix::CacheInfo;
use nix_stored::retention::{CollectError, Collector, Limits};
use nix_stored::store::FsStore;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::command_cache::{CommandCache, CommandOutput, path};
use crate::support::daemon::Daemon;
use crate::support::objects::nar_of_file;
use crate::support::scratch::KillAtExit;
use crate::support::wire::Wire;

/// 1 is old; 2 is old and referenced by 3; 4 is so old that it is removed; 5 is a NAR without a
/// narinfo.
fn cache() -> CommandCache {
    let cache = CommandCache::new();
    cache.add(1, &[], 60);
    cache.add(2, &[], 100);
    cache.add(3, &[2], 10);
    cache.add(4, &[], 70);
    cache.put(&path(5).nar_path, path(5).nar, 2);
    cache
}

fn collector_of(cache: &CommandCache) -> Collector {
    let store = FsStore::open_existing(cache.dir(), 0).expect("present");
    let cache = Cache::new(Arc::new(store.into()), CacheInfo::default(), Admission::default());
    Collector::new(Arc::new(cache), Actor::collector())
}

#[test]
fn a_dry_run_lists_removals_with_reasons_and_removes_nothing() {
    let cache = cache();
    let before = cache.objects();
    let result = cache.run(&["gc", "--dry-run", "--max-age", "65d", "--json"]).is(0);
    let printed = result.json();
    assert_eq!(cache.objects(), before);

    let size = |number| (path(number).nar.len() + path(number).narinfo.len()) as u64;
    let orphan = path(5).nar.len() as u64;
    assert_eq!(printed["dry_run"], true);
    assert_eq!(printed["max_age_seconds"], 65 * 86_400);
    assert_eq!(printed["max_size"], Value::Null);
    assert_eq!(printed["over_limit"], 0);
    let freed = printed["size_before"].as_u64().expect("bytes")
        - printed["size_after"].as_u64().expect("bytes");
    assert_eq!(freed, size(4) + orphan);
    let sums = printed["by_reason"].as_array().expect("a list");
    assert!(sums.contains(&json!({"reason": "age", "paths": 1, "objects": 0, "bytes": size(4)})));
    assert!(sums.contains(&json!({"reason": "orphan", "paths": 0, "objects": 1, "bytes": orphan})));
    let removals = printed["removals"].as_array().expect("a list");
    assert_eq!(removals.len(), 2);
    assert_eq!(removals[0]["store_path"], path(4).store_path);
    assert_eq!(removals[0]["size"], size(4));
    assert_eq!(removals[0]["reason"], "age");
    let used = humantime::parse_rfc3339(removals[0]["last_used"].as_str().expect("a text"));
    let days =
        used.expect("RFC 3339").elapsed().expect("the time is in the past").as_secs() / 86_400;
    assert_eq!(days, 70);
    assert_eq!(removals[1]["store_path"], Value::Null);
    assert_eq!(removals[1]["object"], path(5).nar_path.trim_start_matches('/'));

    let text = cache.run(&["gc", "--dry-run", "--max-age", "65d"]).is(0);
    let line = text.out.lines().find(|line| line.starts_with(&path(4).store_path));
    let line = line.unwrap_or_else(|| panic!("no line of it in {text:?}"));
    assert!(line.contains(" age ") && line.contains("KiB"), "{line}");
    text.prints("would be removed").prints("age: 1 path and 0 other objects");
    assert_eq!(cache.objects(), before);
}

#[test]
fn a_collection_removes_the_paths_that_a_dry_run_lists() {
    let cache = cache();
    let shown = cache.run(&["gc", "--dry-run", "--max-age", "65d", "--json"]).is(0).json();
    let printed = cache.run(&["gc", "--max-age", "65d", "--json"]).is(0).json();
    assert_eq!(printed["paths"], 1);
    assert_eq!(printed["shared"], 2, "its NAR, and the NAR without a narinfo");
    assert_eq!(printed["size_before"], shown["size_before"]);
    assert_eq!(printed["size_after"], shown["size_after"]);
    assert_eq!(printed["stopped"], false);
    assert!(!cache.holds(&path(4)) && !cache.has(&path(5).nar_path));
    assert!([1, 2, 3].iter().all(|&number| cache.holds(&path(number))));
    cache.run(&["gc", "--max-age", "65d"]).is(0).prints("removed 0 paths");
}

#[test]
fn the_limits_are_the_configured_ones_and_options_come_before_them() {
    let cache = cache();
    let env = [("NIX_STORED_MAX_AGE", "65d"), ("NIX_STORED_MAX_SIZE", "1T")];
    let printed = cache.run_with(&env, &["gc", "--dry-run", "--json"]).is(0).json();
    assert_eq!(
        (&printed["max_age_seconds"], &printed["max_size"]),
        (&json!(65 * 86_400), &json!(1u64 << 40))
    );
    let args = ["gc", "--dry-run", "--json", "--max-age", "30d", "--max-size", "2G"];
    let printed = cache.run_with(&env, &args).is(0).json();
    assert_eq!(
        (&printed["max_age_seconds"], &printed["max_size"]),
        (&json!(30 * 86_400), &json!(2u64 << 30))
    );
    assert_eq!(printed["by_reason"][0]["paths"], 2);

    cache.run(&["gc", "--max-size", "many"]).is(64).prints_error("is not a whole number of bytes");
    cache.run(&["gc", "--max-age", "30"]).is(64).prints_error("s, m, h, d or w");
    assert_eq!(cache.objects().len(), 9);
}

#[test]
fn without_a_limit_only_abandoned_uploads_are_removed() {
    let cache = cache();
    // A client may be about to upload its narinfo.
    cache.put(&path(6).nar_path, path(6).nar, 0);
    cache.run(&["gc"]).is(0).prints("no limit is set").prints("removed 0 paths and 1 other object");
    assert!(!cache.has(&path(5).nar_path) && cache.has(&path(6).nar_path));
    assert!((1..=4).all(|number| cache.holds(&path(number))));
}

#[test]
fn the_least_recently_used_paths_are_removed_first_when_the_cache_is_too_large() {
    let cache = cache();
    let args = ["gc", "--max-size", "7K"];
    let shown = cache.run(&[&args[..], &["--dry-run", "--json"]].concat()).is(0).json();
    let by_size = shown["removals"].as_array().expect("a list").iter();
    let by_size: Vec<&Value> =
        by_size.filter(|one| one["reason"] == "size").map(|one| &one["store_path"]).collect();
    assert_eq!(by_size, [&path(4).store_path, &path(1).store_path]);
    cache.run(&args).is(0);
    assert!(cache.holds(&path(2)) && cache.holds(&path(3)));
    assert!(!cache.holds(&path(1)) && !cache.holds(&path(4)));
}

#[test]
fn a_cache_that_stays_too_large_is_reported_with_status_2() {
    let cache = CommandCache::new();
    cache.add(1, &[], 0);
    cache.add(2, &[], 90);
    cache.run(&["pin", "mine", &path(2).store_path]).is(0);
    for args in [&["gc", "--max-size", "1K", "--dry-run"][..], &["gc", "--max-size", "1K"]] {
        cache.run(args).is(2).prints("above its limit of 1.00 KiB, but all its paths are pinned");
    }
    let printed = cache.run(&["gc", "--max-size", "1K", "--json"]).is(2).json();
    let size = printed["size_after"].as_u64().expect("bytes");
    assert_eq!(printed["over_limit"], size - 1024);
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
}

#[test]
fn collections_exclude_each_other_and_a_dry_run_waits_for_none() {
    let cache = cache();
    cache.run(&["pin", "mine", &path(1).store_path]).is(0);
    let lock = fs::File::create(cache.dir().join(".nix-stored/lock")).expect("created");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock is free");
    cache
        .run(&["gc", "--max-age", "65d"])
        .is(1)
        .prints_error("a collection, deletion or repair is running");
    cache
        .run(&["delete", &path(3).store_path])
        .is(1)
        .prints_error("a collection, deletion or repair is running");
    cache.run(&["gc", "--max-age", "65d", "--dry-run"]).is(0);
    cache.run(&["gc", "--explain", &path(1).store_path]).is(0);
    cache.run(&["delete", "--dry-run", &path(3).store_path]).is(0);
    drop(lock);
    assert!(cache.holds(&path(3)) && cache.holds(&path(4)));
    cache.run(&["gc", "--max-age", "65d"]).is(0);
    assert!(!cache.holds(&path(4)));
}

#[test]
fn the_reason_for_removing_or_keeping_a_path_is_explained() {
    let cache = CommandCache::new();
    cache.add(1, &[], 100);
    cache.add(2, &[1], 100);
    cache.run(&["pin", "release", &path(2).store_path]).is(0);
    // Pinning counts as a use.
    for number in [1, 2] {
        cache.age(&path(number).narinfo_path, 100);
        cache.age(&path(number).nar_path, 100);
    }
    cache.add(3, &[], 100);
    cache.add(4, &[3], 0);
    cache.add(5, &[], 100);
    cache.add(6, &[5], 20);
    cache.add(7, &[], 100);
    cache.add(8, &[], 85);
    let explain = |number: u8, args: &[&str]| {
        let store_path = path(number).store_path;
        let args = [&["gc", "--max-age", "90d", "--explain", &store_path], args].concat();
        let text = cache.run(&args).is(0);
        let printed = cache.run(&[&args[..], &["--json"]].concat()).is(0).json();
        assert_eq!(printed["store_path"], store_path);
        let field = |name: &str| printed[name].as_str().unwrap_or_default().to_owned();
        let through = field("through").replace("/nix/store/", "");
        assert!(text.out.contains(&through), "{text:?} does not name {through}");
        let number = through.rsplit_once('-').expect("the name has this suffix").1.parse();
        let number: u8 = number.expect("a number");
        (field("verdict"), field("reason"), field("pin"), number, text.out)
    };
    let is = |printed: (String, String, String, u8, String), expected: (&str, &str, &str, u8)| {
        assert_eq!((&*printed.0, &*printed.1, &*printed.2, printed.3), expected, "{}", printed.4);
        printed.4
    };
    let text = is(explain(1, &[]), ("stays", "pinned", "release", 2));
    assert!(text.contains("the pin release names"), "{text}");
    is(explain(2, &[]), ("stays", "pinned", "release", 2));
    is(explain(3, &[]), ("stays", "recent", "", 4));
    is(explain(5, &[]), ("stays", "within-limits", "", 6));
    let text = is(explain(7, &[]), ("goes", "age", "", 7));
    assert!(text.contains("more than 90d ago"), "{text}");
    is(explain(8, &["--max-size", "1K"]), ("goes", "size", "", 8));

    let absent = path(9).store_path;
    let printed = cache.run(&["gc", "--explain", &absent, "--json"]).is(2).json();
    assert_eq!((&printed["verdict"], &printed["reason"]), (&json!("absent"), &Value::Null));
    cache.run(&["gc", "--explain", &absent]).is(2).prints("is not in the cache");
    assert!((1..=8).all(|number| cache.holds(&path(number))), "explaining removes nothing");
}

#[test]
fn a_collection_beside_a_running_daemon_disturbs_no_request() {
    let daemon = Daemon::start();
    let cache = CommandCache::at(daemon.dir());
    let put = |number: u8| {
        let path = path(number);
        let put = |name: &str, body: &[u8]| Wire::to(&daemon).request("PUT", name, body).status;
        assert_eq!(put(&path.nar_path, &path.nar), 201);
        assert_eq!(put(&path.narinfo_path, path.narinfo.as_bytes()), 201);
        path
    };
    let (old, new) = (put(1), put(2));
    cache.age(&old.narinfo_path, 40);
    cache.age(&old.nar_path, 40);
    let printed = cache.run(&["gc", "--max-age", "30d", "--json"]).is(0).json();
    assert_eq!((&printed["paths"], &printed["shared"]), (&json!(1), &json!(1)));
    let status = |name: &str| Wire::to(&daemon).request("GET", name, b"").status;
    assert_eq!((status(&old.narinfo_path), status(&old.nar_path)), (404, 404));
    assert_eq!((status(&new.narinfo_path), status(&new.nar_path)), (200, 200));
    put(1);
    assert_eq!((status(&old.narinfo_path), status(&old.nar_path)), (200, 200));
}

#[tokio::test]
async fn a_collection_stops_between_two_removals() {
    let cache = cache();
    let stop = CancellationToken::new();
    let limits =
        Limits { max_size: None, max_age: Some(Duration::from_secs(86_400)), grace: GRACE };
    let stop_after_two = |step| {
        if step == (Progress::Done { done: 2, total: 9 }) {
            stop.cancel();
        }
    };
    let collecting = collector_of(&cache);
    let now = SystemTime::now();
    let report = collecting.collect(&limits, now, &stop, stop_after_two).await;
    let report = report.expect("no error");
    assert_eq!((report.stopped, report.paths, report.shared), (true, 2, 0));
    assert!(report.size_after < report.size_before);
    assert_eq!(cache.objects().len(), 7);

    // It was cancelled before it started.
    let printed = collecting.collect(&limits, now, &stop, |_| {}).await;
    assert!(matches!(printed, Err(CollectError::Stopped)), "{printed:?}");
    assert_eq!(cache.objects().len(), 7);
}

#[test]
fn sigterm_ends_a_collection_and_progress_is_reported() {
    let cache = CommandCache::new();
    let nars = (0..4000_u16).map(|number| {
        let nar = nar_of_file(&number.to_le_bytes());
        let hash = nix_stored::nix::Sha256Hash::of(&nar).to_nix32();
        (format!("nar/{hash}.nar"), nar)
    });
    for (name, nar) in nars {
        cache.put(&name, nar, 2);
    }
    let mut command = cache.command(&["gc"]);
    let mut child = command.spawn().expect("the binary starts");
    let pid = Pid::from_child(&child);
    let guard = KillAtExit::new(pid);
    // The folder is created for the first removed NAR.
    while !cache.has(".nix-stored/trash/nar") {
        assert!(matches!(child.try_wait(), Ok(None)), "the collection ended before a removal");
        std::thread::yield_now();
    }
    kill_process(pid, Signal::TERM).expect("still running");
    let result = CommandOutput::of(child.wait_with_output().expect("the process ends"));
    drop(guard);
    let left = cache.objects().len();
    let result = result.is(1).prints("stopped before the end; removed 0 paths and ");
    assert!(result.err.contains("received SIGTERM"), "{result:?}");
    assert!(0 < left && left < 4000, "{left} are left");
    cache.run(&["gc"]).is(0);
    assert_eq!(cache.objects().len(), 0);
}
