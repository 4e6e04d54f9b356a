//! `nix-stored delete`: all given paths are removed, or none.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use nix_stored::cache::{Actor, Cache};
use nix_stored::config::Admission;
use nix_stored::nix::{CacheInfo, CachePath};
use nix_stored::retention::{Analysis, Collector, Referrers, plan_removal};
use nix_stored::store::FsStore;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::given::{Given, path, texts};
use crate::support::daemon::Daemon;
use crate::support::wire::Wire;

fn name(number: u8) -> String {
    path(number).store_path
}

/// 3 needs 2, which needs 1; all just used.
fn chain() -> Given {
    let cache = Given::new();
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
        std::fs::metadata(cache.dir().join(key)).expect("it is there").len()
    };
    let freed = size(&path(3).nar_path) + size(&path(3).narinfo_path) + size(&listing);
    let told = cache.run(&["delete", "--dry-run", "--json", &name(3)]).is(0).json();
    assert_eq!((&told["dry_run"], &told["freed"]), (&json!(true), &json!(freed)));
    assert!(cache.holds(&path(3)));
    let told = cache.run(&["delete", "--json", &name(3)]).is(0).json();
    assert_eq!(texts(&told["store_paths"]), [name(3)]);
    assert_eq!((&told["paths"], &told["freed"]), (&json!(1), &json!(freed)));
    assert!(!cache.holds(&path(3)) && !cache.has(&listing));
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
    cache.run(&["delete", &name(2), &name(1)]).is(0).says("removed 2 paths");
    assert_eq!(cache.objects().len(), 0);
}

#[test]
fn a_path_with_referrers_is_removed_only_with_them() {
    let cache = chain();
    let ended = cache.run(&["delete", &name(1)]).is(2);
    let ended =
        ended.complains(&format!("{} is a dependency of 1 path, such as {}", name(1), name(2)));
    ended.complains("--with-referrers").complains("nothing was removed");
    let told = cache.run(&["delete", "--json", &name(1)]).is(2).json();
    assert_eq!(told["refused"], true);
    assert_eq!(told["needed"][0]["store_path"], name(1));
    assert_eq!(told["needed"][0]["referrers"], 1);
    assert_eq!(texts(&told["needed"][0]["examples"]), [name(2)]);
    assert!([1, 2, 3].iter().all(|&number| cache.holds(&path(number))));

    let told = cache.run(&["delete", "--with-referrers", "--json", &name(2)]).is(0).json();
    assert_eq!(texts(&told["store_paths"]), [name(3), name(2)], "what needs another goes first");
    assert!(cache.holds(&path(1)) && !cache.holds(&path(2)) && !cache.holds(&path(3)));
}

#[test]
fn pinned_paths_are_never_deleted() {
    let cache = chain();
    cache.run(&["pin", "release", &name(2)]).is(0);
    for args in [&["delete"][..], &["delete", "--with-referrers"]] {
        let ended = cache.run(&[args, &[&name(1)]].concat()).is(2);
        let needed = format!("{} is a dependency of {}, which is pinned", name(1), name(2));
        ended.complains(&needed).complains("nix-stored unpin release");
        let told = cache.run(&[args, &[&name(2), "--json"]].concat()).is(2).json();
        assert_eq!(told["pinned"][0]["pin"], "release");
        assert_eq!(told["pinned"][0]["store_path"], name(2));
    }
    // What needs a pinned path is free to go.
    cache.run(&["delete", &name(3)]).is(0);
    assert!(cache.holds(&path(1)) && cache.holds(&path(2)));
    cache.run(&["unpin", "release"]).is(0);
    cache.run(&["delete", "--with-referrers", &name(1)]).is(0);
    assert_eq!(cache.objects().len(), 0);
}

#[test]
fn nothing_is_removed_unless_all_given_paths_can_be() {
    let cache = chain();
    let ended = cache.run(&["delete", &name(3), &name(8)]).is(2);
    let absent = path(8).narinfo_path.replace(".narinfo", "");
    ended.complains(&format!("{absent} is not in the cache")).complains("nothing was removed");
    let told = cache.run(&["delete", "--json", &name(3), &name(8)]).is(2).json();
    assert_eq!(texts(&told["absent"]), [format!("/nix/store{absent}")]);
    cache.run(&["delete", &name(3), "rubbish"]).is(64).complains("“rubbish” is not a store path");
    cache.run(&["delete", "--dry-run", &name(8)]).is(2);
    assert!([1, 2, 3].iter().all(|&number| cache.holds(&path(number))));
}

#[test]
fn a_path_can_be_given_in_every_form_that_nix_knows() {
    let cache = chain();
    let base = name(3).replace("/nix/store/", "");
    let link = cache.dir().join("result");
    let second = cache.dir().join("to-result");
    symlink(format!("{}/bin", name(3)), &link).expect("made");
    symlink("./result", &second).expect("made");
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
        let told = cache.run(&["delete", "--dry-run", "--json", &named]).is(0).json();
        assert_eq!(texts(&told["store_paths"]), [name(3)], "{named}");
    }
    for wrong in ["/gnu/store/x", "/nix/store", "/nix/store/short-x", "", "./absent", &base[..31]] {
        cache.run(&["delete", wrong]).is(64).complains("is not a store path");
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
    Given::at(daemon.dir()).run(&["delete", &sample.store_path]).is(0);
    assert_eq!(get(&sample.nar_path), 404);
    assert_eq!(get(&sample.narinfo_path), 404);
    assert_eq!(put(&sample.narinfo_path, sample.narinfo.as_bytes()), 422, "its NAR is gone");
    assert_eq!(upload(), (201, 201));
    assert_eq!((get(&sample.nar_path), get(&sample.narinfo_path)), (200, 200));
}

#[tokio::test]
async fn an_upload_that_found_the_nar_on_its_way_out_does_not_leave_a_false_narinfo() {
    let given = Given::new();
    let sample = given.add(1, &[], 0);
    let store = FsStore::open_existing(given.dir(), 0).expect("it is there");
    let cache = Cache::new(Arc::new(store.into()), CacheInfo::default(), Admission::default());
    let cache = Arc::new(cache);
    let inventory = cache.inventory(|_| {}).await.expect("it can be read");
    let analysis = Analysis::new(&inventory, &[]);
    let hash = inventory.paths[0].store_path.hash();
    let plan = plan_removal(&analysis, &[hash], Referrers::Refuse).expect("nothing is against it");
    let upload = |done| {
        if done == 1 {
            assert!(!given.has(&sample.narinfo_path) && given.has(&sample.nar_path));
            given.put(&sample.narinfo_path, &sample.narinfo, 0);
        }
    };
    let stop = CancellationToken::new();
    let collector = Collector::new(Arc::clone(&cache), Actor::silent());
    let outcome = collector.delete(&inventory, &plan, &stop, upload).await.expect("nothing fails");
    assert_eq!((outcome.paths, outcome.shared), (1, 1));
    assert!(!given.holds(&sample));
    assert!(cache.head(&CachePath::NarInfo(hash)).await.expect("nothing fails").is_none());
}
