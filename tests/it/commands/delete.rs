//! `nix-stored delete`: all cache paths are removed, or none.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use nix_stored::cache::{Actor, Cache};
use nix_stored::config::Admission;
use nix_stored::nix::{CacheInfo, CachePath};
use nix_stored::retention::{Analysis, Collector, Referrers, plan_removal};
use nix_stored::store::FsStore;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::command_cache::{CommandCache, path, texts};
use crate::support::daemon::Daemon;
use crate::support::wire::Wire;

fn name(number: u8) -> String {
    path(number).store_path
}

/// 3 refers to 2, which refers to 1; all were just used.
fn chain() -> CommandCache {
    let cache = CommandCache::new();
    cache.add(1, &[], 0);
    cache.add(2, &[1], 0);
    cache.add(3, &[2], 0);
    cache
}

#[test]
fn given_paths_are_removed_however_recently_they_were_used() {
    let cache = chain();
    let listing = path(3).narinfo_path.replace(".narinfo", ".ls");
    cache.put(&listing, "{}", 0);
    let size = |key: &str| {
        let key = key.trim_start_matches('/');
        std::fs::metadata(cache.dir().join(key)).expect("present").len()
    };
    let freed = size(&path(3).nar_path) + size(&path(3).narinfo_path) + size(&listing);
    let printed = cache.run(&["delete", "--dry-run", "--json", &name(3)]).is(0).json();
    assert_eq!((&printed["dry_run"], &printed["freed"]), (&json!(true), &json!(freed)));
    assert!(cache.holds(&path(3)));
    let printed = cache.run(&["delete", "--json", &name(3)]).is(0).json();
    assert_eq!(texts(&printed["store_paths"]), [name(3)]);
    assert_eq!((&printed["paths"], &printed["freed"]), (&json!(1), &json!(freed)));
    assert!(!cache.holds(&path(3)) && !cache.has(&listing));
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
    cache.run(&["delete", &name(2), &name(1)]).is(0).prints("removed 2 paths");
    assert_eq!(cache.objects().len(), 0);
}

#[test]
fn a_path_with_referrers_is_removed_only_with_them() {
    let cache = chain();
    let result = cache.run(&["delete", &name(1)]).is(2);
    let result =
        result.prints_error(&format!("{} is a dependency of 1 path, such as {}", name(1), name(2)));
    result.prints_error("--with-referrers").prints_error("nothing was removed");
    let printed = cache.run(&["delete", "--json", &name(1)]).is(2).json();
    assert_eq!(printed["refused"], true);
    assert_eq!(printed["needed"][0]["store_path"], name(1));
    assert_eq!(printed["needed"][0]["referrers"], 1);
    assert_eq!(texts(&printed["needed"][0]["examples"]), [name(2)]);
    assert!([1, 2, 3].iter().all(|&number| cache.holds(&path(number))));

    let printed = cache.run(&["delete", "--with-referrers", "--json", &name(2)]).is(0).json();
    assert_eq!(texts(&printed["store_paths"]), [name(3), name(2)], "referrers are removed first");
    assert!(cache.holds(&path(1)) && !cache.holds(&path(2)) && !cache.holds(&path(3)));
}

#[test]
fn pinned_paths_are_never_deleted() {
    let cache = chain();
    cache.run(&["pin", "release", &name(2)]).is(0);
    for args in [&["delete"][..], &["delete", "--with-referrers"]] {
        let result = cache.run(&[args, &[&name(1)]].concat()).is(2);
        let needed = format!("{} is a dependency of {}, which is pinned", name(1), name(2));
        result.prints_error(&needed).prints_error("nix-stored unpin release");
        let printed = cache.run(&[args, &[&name(2), "--json"]].concat()).is(2).json();
        assert_eq!(printed["pinned"][0]["pin"], "release");
        assert_eq!(printed["pinned"][0]["store_path"], name(2));
    }
    // A path that depends on a pinned path may be removed.
    cache.run(&["delete", &name(3)]).is(0);
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
    cache.run(&["unpin", "release"]).is(0);
    cache.run(&["delete", "--with-referrers", &name(1)]).is(0);
    assert_eq!(cache.objects().len(), 0);
}

#[test]
fn nothing_is_removed_unless_all_given_paths_can_be() {
    let cache = chain();
    let result = cache.run(&["delete", &name(3), &name(8)]).is(2);
    let absent = path(8).narinfo_path.replace(".narinfo", "");
    result
        .prints_error(&format!("{absent} is not in the cache"))
        .prints_error("nothing was removed");
    let printed = cache.run(&["delete", "--json", &name(3), &name(8)]).is(2).json();
    assert_eq!(texts(&printed["absent"]), [format!("/nix/store{absent}")]);
    cache
        .run(&["delete", &name(3), "rubbish"])
        .is(64)
        .prints_error("“rubbish” is not a store path");
    cache.run(&["delete", "--dry-run", &name(8)]).is(2);
    assert!([1, 2, 3].iter().all(|&number| cache.holds(&path(number))));
}

#[test]
fn a_path_can_be_given_in_every_form_that_nix_knows() {
    let cache = chain();
    let base = name(3).replace("/nix/store/", "");
    let link = cache.dir().join("result");
    let second = cache.dir().join("to-result");
    symlink(format!("{}/bin", name(3)), &link).expect("created");
    symlink("./result", &second).expect("created");
    let named = [
        name(3),
        format!("{}/bin/hello", name(3)),
        base.clone(),
        base[..32].to_owned(),
        "./result".to_owned(),
        "to-result".to_owned(),
        second.to_str().expect("UTF-8").to_owned(),
    ];
    for named in named {
        let printed = cache.run(&["delete", "--dry-run", "--json", &named]).is(0).json();
        assert_eq!(texts(&printed["store_paths"]), [name(3)], "{named}");
    }
    for wrong in ["/gnu/store/x", "/nix/store", "/nix/store/short-x", "", "./absent", &base[..31]] {
        cache.run(&["delete", wrong]).is(64).prints_error("is not a store path");
    }
}

#[test]
fn a_nar_is_removed_with_the_last_path_that_names_it() {
    let cache = chain();
    let twin = path(7);
    let narinfo = path(3).narinfo.replace(&name(3), &twin.store_path);
    cache.put(&twin.narinfo_path, narinfo, 0);
    cache.run(&["delete", &name(3)]).is(0);
    assert!(!cache.has(&path(3).narinfo_path) && cache.has(&path(3).nar_path));
    cache.run(&["delete", &twin.store_path]).is(0);
    assert!(!cache.has(&path(3).nar_path));
}

#[test]
fn a_running_daemon_does_not_serve_a_deleted_path_and_accepts_it_again() {
    let daemon = Daemon::start();
    let sample = path(1);
    let put = |name: &str, body: &[u8]| Wire::to(&daemon).request("PUT", name, body).status;
    let get = |name: &str| Wire::to(&daemon).request("GET", name, b"").status;
    let upload = || {
        let nar = put(&sample.nar_path, &sample.nar);
        (nar, put(&sample.narinfo_path, sample.narinfo.as_bytes()))
    };
    assert_eq!(upload(), (201, 201));
    CommandCache::at(daemon.dir()).run(&["delete", &sample.store_path]).is(0);
    assert_eq!(get(&sample.nar_path), 404);
    assert_eq!(get(&sample.narinfo_path), 404);
    assert_eq!(put(&sample.narinfo_path, sample.narinfo.as_bytes()), 422, "its NAR is absent");
    assert_eq!(upload(), (201, 201));
    assert_eq!((get(&sample.nar_path), get(&sample.narinfo_path)), (200, 200));
}

#[tokio::test]
async fn an_upload_that_found_the_nar_on_its_way_out_does_not_leave_a_false_narinfo() {
    let files = CommandCache::new();
    let sample = files.add(1, &[], 0);
    let store = FsStore::open_existing(files.dir(), 0).expect("present");
    let cache = Cache::new(Arc::new(store.into()), CacheInfo::default(), Admission::default());
    let cache = Arc::new(cache);
    let inventory = cache.inventory(|_| {}).await.expect("readable");
    let analysis = Analysis::new(&inventory, &[]);
    let hash = inventory.paths[0].store_path.hash();
    let plan = plan_removal(&analysis, &[hash], Referrers::Refuse).expect("the removal is allowed");
    let upload = |done| {
        if done == 1 {
            assert!(!files.has(&sample.narinfo_path) && files.has(&sample.nar_path));
            files.put(&sample.narinfo_path, &sample.narinfo, 0);
        }
    };
    let stop = CancellationToken::new();
    let collector = Collector::new(Arc::clone(&cache), Actor::silent());
    let outcome = collector.delete(&inventory, &plan, &stop, upload).await.expect("no error");
    assert_eq!((outcome.paths, outcome.shared), (1, 1));
    assert!(!files.holds(&sample));
    assert!(cache.head(&CachePath::NarInfo(hash)).await.expect("no error").is_none());
}
