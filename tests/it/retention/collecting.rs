//! Collections on real directories, and what interferes with them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use nix_stored::cache::GRACE;
use nix_stored::inventory::Inventory;
use nix_stored::retention::{
    Analysis, CollectError, GcReport, Limits, PinError, Pins, Plan, PlanOutcome,
};
use rustix::process::Pid;
use tokio_util::sync::CancellationToken;

use super::dir::{self, DAY, HOUR};
use crate::support::cache::TestCache;
use crate::support::objects::sample;
use crate::support::scratch::{KillAtExit, Scratch};

/// Limits that remove paths unused for a month.
const MONTH: Limits = Limits {
    max_size: None,
    max_age: Some(nix_stored::retention::POSITIVE_LOOKUP_TTL),
    grace: GRACE,
};

/// A cache with its directory and a fixed time.
struct TestRun {
    cache: TestCache,
    scratch: Scratch,
    now: SystemTime,
}

impl TestRun {
    fn new() -> Self {
        let scratch = Scratch::new();
        Self { cache: TestCache::over(scratch.path(), GRACE), scratch, now: dir::now() }
    }

    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn days_ago(&self, days: u32) -> SystemTime {
        self.now - DAY * days
    }

    async fn try_collect(&self, limits: &Limits) -> Result<GcReport, CollectError> {
        let stop = CancellationToken::new();
        self.cache.collector().collect(limits, self.now, &stop, |_| {}).await
    }

    async fn collect(&self, limits: &Limits) -> GcReport {
        self.try_collect(limits).await.expect("the collection succeeds")
    }

    /// The inventory and the plan of a collection.
    async fn plan(&self, limits: &Limits) -> (Inventory, Plan) {
        let inventory = self.cache.cache().inventory(|_| {}).await.expect("readable");
        let pins = Pins::of(self.cache.cache()).list().await.expect("readable");
        let plan = Analysis::new(&inventory, &pins).plan(limits, self.now);
        (inventory, plan)
    }

    async fn apply(&self, (inventory, plan): &(Inventory, Plan), limits: &Limits) -> PlanOutcome {
        let stop = CancellationToken::new();
        let collector = self.cache.collector();
        let done = collector.execute(inventory, plan, limits, self.now, &stop, |_| {}).await;
        done.expect("the disk works")
    }

    fn size(&self) -> u64 {
        dir::sizes(self.dir()).values().sum()
    }

    /// Checks that exactly these objects are left.
    #[track_caller]
    fn has<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) {
        let expected: BTreeSet<String> =
            keys.into_iter().map(|key| key.as_ref().to_owned()).collect();
        let found: BTreeSet<String> = dir::sizes(self.dir()).into_keys().collect();
        assert_eq!(found, expected);
    }
}

/// The keys of these paths, each with its own NAR.
fn whole(paths: impl IntoIterator<Item = usize>) -> impl Iterator<Item = String> {
    paths.into_iter().flat_map(|path| [dir::narinfo(path), dir::nar(path)])
}

fn listing(path: usize) -> String {
    dir::narinfo(path).replace(".narinfo", ".ls")
}

#[tokio::test]
async fn side_files_are_removed_with_their_path() {
    let run = TestRun::new();
    let (old, base) = (run.days_ago(40), dir::store_path(1));
    dir::put_path(run.dir(), 1, &[], old);
    dir::put_path(run.dir(), 2, &[], run.days_ago(2));
    let link = |path: usize| format!("{{\"outPath\": \"{}\"}}", dir::store_path(path));
    let debug =
        |nar: usize| format!("{{\"archive\": \"../{}\", \"member\": \"x\"}}", dir::nar(nar));
    for (key, text) in [
        (listing(1), "{}".to_owned()),
        (listing(2), "{}".to_owned()),
        (format!("realisations/sha256:{:064x}!out.doi", 1), link(1)),
        (format!("realisations/sha256:{:064x}!out.doi", 2), link(2)),
        (format!("build-trace-v2/{base}.drv/out.doi"), link(1)),
        (format!("debuginfo/{:040x}.debug", 1), debug(1)),
        (format!("debuginfo/{:040x}.debug", 2), debug(2)),
    ] {
        dir::put(run.dir(), &key, text, old);
    }
    let size = run.size();
    let report = run.collect(&MONTH).await;
    let side = [
        listing(2),
        format!("realisations/sha256:{:064x}!out.doi", 2),
        format!("debuginfo/{:040x}.debug", 2),
    ];
    run.has(whole([2]).chain(side));
    assert_eq!((report.paths, report.shared, report.unowned), (1, 1, 0));
    assert_eq!(report.size_before, size);
    assert_eq!(report.size_after, run.size());
}

#[tokio::test]
async fn a_use_of_a_side_file_keeps_its_path() {
    // A use of a listing, a log or a link to debug symbols counts as a use of the path.
    for used in [listing(1), dir::log(1), format!("debuginfo/{:040x}.debug", 1)] {
        let run = TestRun::new();
        let text = dir::narinfo_text(1, 1, &[], Some(1), 0);
        let debug = format!("{{\"archive\": \"../{}\", \"member\": \"x\"}}", dir::nar(1));
        let all = [
            (dir::narinfo(1), text),
            (dir::nar(1), "NAR".to_owned()),
            (listing(1), "{}".to_owned()),
            (dir::log(1), "log".to_owned()),
            (format!("debuginfo/{:040x}.debug", 1), debug),
        ];
        for (key, text) in &all {
            dir::put(run.dir(), key, text, run.days_ago(40));
        }
        run.cache.get(&format!("/{used}")).await.is(200);
        let report = run.collect(&MONTH).await;
        run.has(all.iter().map(|(key, _)| key));
        assert_eq!(report.size_after, report.size_before);
    }
}

#[tokio::test]
async fn a_log_is_kept_as_long_as_one_output_of_its_derivation() {
    let run = TestRun::new();
    for (path, days) in [(1, 40), (2, 20)] {
        let text = dir::narinfo_text(path, path, &[], Some(7), 0);
        dir::put(run.dir(), &dir::narinfo(path), text, run.days_ago(days));
        dir::put(run.dir(), &dir::nar(path), format!("{path}"), run.days_ago(days));
    }
    dir::put(run.dir(), &dir::log(7), "it was built", run.days_ago(50));
    let report = run.collect(&MONTH).await;
    run.has(whole([2]).chain([dir::log(7)]));
    assert_eq!((report.paths, report.shared), (1, 1));
    let report = run.collect(&Limits { max_age: Some(DAY * 15), ..MONTH }).await;
    run.has([] as [&str; 0]);
    assert_eq!((report.paths, report.shared), (1, 2));
}

#[tokio::test]
async fn a_nar_is_kept_as_long_as_one_path_that_names_it() {
    let run = TestRun::new();
    // The paths share a NAR, and so its last use; they differ only by their referrers.
    for path in [1, 2] {
        let text = dir::narinfo_text(path, 1, &[], None, 0);
        dir::put(run.dir(), &dir::narinfo(path), text, run.days_ago(40));
    }
    dir::put(run.dir(), &dir::nar(1), "NAR", run.days_ago(50));
    dir::put_path(run.dir(), 3, &[2], run.days_ago(20));
    let report = run.collect(&MONTH).await;
    run.has(whole([3]).chain([dir::narinfo(2), dir::nar(1)]));
    assert_eq!((report.paths, report.shared), (1, 0));
    let report = run.collect(&Limits { max_age: Some(DAY * 15), ..MONTH }).await;
    run.has([] as [&str; 0]);
    assert_eq!((report.paths, report.shared), (2, 2));
}

#[tokio::test]
async fn orphans_are_removed_after_the_grace_period_and_other_files_when_they_are_too_old() {
    let run = TestRun::new();
    let nothing = Limits { max_age: None, ..MONTH };
    dir::put(run.dir(), &dir::nar(1), "an upload that was given up", run.now - HOUR * 25);
    dir::put(run.dir(), &dir::nar(2), "an upload that goes on", run.now - HOUR * 23);
    let strays = |days: u32| {
        let number = days as usize;
        let keys = [
            listing(number),
            dir::log(number),
            format!("debuginfo/{number:040x}.debug"),
            dir::narinfo(1000 + number),
        ];
        for key in &keys {
            dir::put(run.dir(), key, "{}", run.days_ago(days));
        }
        keys
    };
    let (old, new) = (strays(40), strays(20));
    let report = run.collect(&nothing).await;
    assert_eq!((report.paths, report.shared, report.unowned), (0, 1, 0));
    run.has([dir::nar(2)].into_iter().chain(old).chain(new.clone()));
    let report = run.collect(&MONTH).await;
    assert_eq!((report.paths, report.shared, report.unowned), (0, 0, 4));
    run.has([dir::nar(2)].into_iter().chain(new.clone()));
    // Foreign files are not removed.
    dir::put(run.dir(), "nar/README", "hello", run.days_ago(400));
    let report = run.collect(&Limits { max_size: Some(0), ..MONTH }).await;
    assert_eq!((report.unowned, report.over_limit), (4, report.size_after));
    run.has([dir::nar(2), "nar/README".to_owned()]);
}

#[tokio::test]
async fn an_invalid_narinfo_stops_no_collection() {
    let run = TestRun::new();
    dir::put_path(run.dir(), 1, &[2], run.days_ago(20));
    dir::put_path(run.dir(), 2, &[], run.days_ago(40));
    dir::put_path(run.dir(), 3, &[2], run.days_ago(50));
    let cut_off = dir::narinfo_text(4, 4, &[], None, 0);
    dir::put(run.dir(), &dir::narinfo(4), &cut_off[..cut_off.len() - 9], run.days_ago(20));
    // The narinfo of another path.
    dir::put(run.dir(), &dir::narinfo(5), dir::narinfo_text(2, 2, &[], None, 0), run.days_ago(40));
    let report = run.collect(&MONTH).await;
    assert_eq!((report.paths, report.shared, report.unowned), (2, 1, 0));
    assert_eq!((report.unparsed_narinfos.lenient, report.unparsed_narinfos.garbage), (2, 0));
    run.has(whole([1, 2]).chain([dir::narinfo(4)]));
}

#[tokio::test]
async fn the_nar_of_an_invalid_narinfo_is_no_orphan() {
    let run = TestRun::new();
    dir::put_path(run.dir(), 1, &[], run.days_ago(20));
    dir::put_path(run.dir(), 2, &[], run.days_ago(20));
    // From another store directory: neither served nor removed.
    let text = dir::narinfo_text(2, 2, &[], None, 0).replace("/nix/store/", "/gnu/store/");
    dir::put(run.dir(), &dir::narinfo(2), text, run.days_ago(20));
    run.collect(&MONTH).await;
    run.has(whole([1, 2]));
}

#[tokio::test]
async fn nothing_is_removed_from_a_cache_for_another_store_dir() {
    let run = TestRun::new();
    dir::put_path(run.dir(), 1, &[], run.days_ago(40));
    let text = dir::narinfo_text(1, 1, &[], None, 0).replace("/nix/store/", "/gnu/store/");
    dir::put(run.dir(), &dir::narinfo(1), text, run.days_ago(40));
    let refused = run.try_collect(&MONTH).await.expect_err("it must not");
    assert!(refused.to_string().contains("NIX_STORED_STORE_DIR"), "{refused}");
    run.has(whole([1]));
}

#[tokio::test]
async fn a_pinned_path_is_kept_with_its_closure() {
    let run = TestRun::new();
    let pins = Pins::of(run.cache.cache());
    for (path, references) in [(1, &[2][..]), (2, &[3]), (3, &[]), (4, &[1])] {
        dir::put_path(run.dir(), path, references, run.days_ago(40));
    }
    assert!(!pins.set("release", &[dir::store_path(1)]).await.expect("the request succeeds"));
    for path in 1..=4 {
        dir::set_used(run.dir(), &dir::narinfo(path), run.days_ago(40));
        dir::set_used(run.dir(), &dir::nar(path), run.days_ago(40));
    }
    let report = run.collect(&Limits { max_size: Some(1), ..MONTH }).await;
    run.has(whole([1, 2, 3]));
    assert_eq!(report.over_limit, report.size_after - 1);

    // An unreadable pin could name any path.
    dir::put(run.dir(), ".nix-stored/pins/broken", "/nix/store/short", run.now);
    let refused = run.try_collect(&MONTH).await;
    assert!(matches!(refused, Err(CollectError::Pin(PinError::Line { .. }))), "{refused:?}");
    assert!(pins.remove("broken").await.expect("the request succeeds"));
    assert!(pins.remove("release").await.expect("the request succeeds"));
    run.collect(&MONTH).await;
    run.has([] as [&str; 0]);
}

#[tokio::test]
async fn collections_exclude_each_other() {
    let run = TestRun::new();
    dir::put_path(run.dir(), 1, &[], run.days_ago(40));
    // Another process, which opens the directory itself.
    let other = TestCache::over(run.dir(), GRACE);
    for cache in [&run.cache, &other] {
        let lock = cache.collector().lock().await.expect("the request succeeds").expect("free");
        let refused = run.try_collect(&MONTH).await;
        assert!(matches!(refused, Err(CollectError::Busy)), "{refused:?}");
        drop(lock);
    }
    assert_eq!(run.collect(&MONTH).await.paths, 1);
}

#[tokio::test]
async fn the_lock_of_a_killed_process_is_released() {
    let run = TestRun::new();
    let lock = run.scratch.join(".nix-stored/lock");
    let mut holder = Command::new("flock")
        .args(["--no-fork"])
        .arg(&lock)
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock starts: it is a part of util-linux");
    let guard = KillAtExit::new(Pid::from_child(&holder));
    // It prints a line when it has the lock.
    let mut input = holder.stdin.take().expect("piped");
    input.write_all(b"ready\n").expect("the daemon reads");
    let mut response = String::new();
    let mut output = BufReader::new(holder.stdout.take().expect("piped"));
    output.read_line(&mut response).expect("a response arrives");
    assert_eq!(response, "ready\n");
    let refused = run.try_collect(&MONTH).await;
    assert!(matches!(refused, Err(CollectError::Busy)), "{refused:?}");

    holder.kill().expect("a child process");
    holder.wait().expect("a child process");
    drop(guard);
    assert!(lock.exists());
    run.collect(&MONTH).await;
}

#[tokio::test]
async fn a_stopped_collection_leaves_every_closure_complete() {
    let paths = 4;
    for moment in 0.. {
        let run = TestRun::new();
        for path in 0..paths {
            let references: Vec<usize> = (0..path).collect();
            dir::put_path(run.dir(), path, &references, run.days_ago(40));
            dir::put(run.dir(), &listing(path), "{}", run.days_ago(40));
        }
        let before = dir::sizes(run.dir());
        let (inventory, plan) = run.plan(&MONTH).await;
        let stop = CancellationToken::new();
        if moment == 0 {
            stop.cancel();
        }
        let progress = |done: u64| {
            if done == moment {
                stop.cancel();
            }
        };
        let collector = run.cache.collector();
        let outcome = collector.execute(&inventory, &plan, &MONTH, run.now, &stop, progress).await;
        let outcome = outcome.expect("the disk works");
        let done = outcome.paths + outcome.shared;
        dir::assert_whole(run.dir(), &before);
        assert_eq!(GcReport::new(&inventory, &plan, &outcome).size_after, run.size());
        if !outcome.stopped {
            assert_eq!((done, moment), (2 * paths, 2 * paths as u64));
            break;
        }
        assert_eq!(done as u64, moment);
    }
    // Also if it is stopped before it has listed the cache.
    let run = TestRun::new();
    dir::put_path(run.dir(), 1, &[], run.days_ago(40));
    let stop = CancellationToken::new();
    stop.cancel();
    let stopped = run.cache.collector().collect(&MONTH, run.now, &stop, |_| {}).await;
    assert!(stopped.is_err() || stopped.is_ok_and(|report| report.stopped));
    run.has(whole([1]));
}

/// Path 1 refers to 2, which refers to 3; 4 refers to 3 too. All of them are planned for removal.
async fn about_to_be_collected() -> (TestRun, (Inventory, Plan)) {
    let run = TestRun::new();
    for (path, references) in [(1, &[2][..]), (2, &[3]), (3, &[]), (4, &[3])] {
        dir::put_path(run.dir(), path, references, run.days_ago(40));
    }
    let planned = run.plan(&MONTH).await;
    assert_eq!(planned.1.removals.len(), 8);
    (run, planned)
}

#[tokio::test]
async fn a_path_that_is_used_during_a_collection_is_kept_with_its_closure() {
    for method in ["GET", "HEAD"] {
        let (run, planned) = about_to_be_collected().await;
        let path = format!("/{}", dir::narinfo(2));
        match method {
            "GET" => run.cache.get(&path).await.is(200),
            _ => run.cache.head(&path).await.is(200),
        };
        let outcome = run.apply(&planned, &MONTH).await;
        run.has(whole([2, 3]));
        assert_eq!((outcome.kept_in_use, outcome.paths, outcome.shared), (2, 2, 2));
    }
    // A client that has the narinfo already requests only the NAR.
    let (run, planned) = about_to_be_collected().await;
    run.cache.get(&format!("/{}", dir::nar(2))).await.is(200);
    run.apply(&planned, &MONTH).await;
    run.has([dir::nar(2)]);
}

#[tokio::test]
async fn references_of_an_upload_are_kept() {
    let (run, planned) = about_to_be_collected().await;
    let mut sample = sample(9, b"contents");
    let references = format!("References: {}", dir::store_path(2));
    sample.narinfo = sample.narinfo.replace("References: ", &references);
    run.cache.put(&sample.nar_path, sample.nar.clone()).await.is(201);
    run.cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
    run.apply(&planned, &MONTH).await;
    let uploaded = [sample.nar_path[1..].to_owned(), sample.narinfo_path[1..].to_owned()];
    run.has(whole([2, 3]).chain(uploaded));
}

#[tokio::test]
async fn a_nar_that_a_client_was_told_of_is_kept() {
    let run = TestRun::new();
    let sample = sample(9, b"contents");
    let (nar, narinfo) = (&sample.nar_path[1..], &sample.narinfo_path[1..]);
    // Its narinfo was never uploaded, or was removed earlier.
    dir::put(run.dir(), nar, &sample.nar, run.days_ago(40));
    let planned = run.plan(&MONTH).await;
    assert_eq!(planned.1.removals.len(), 1);
    // Nix looks for the NAR, and then does not upload it.
    run.cache.head(&sample.nar_path).await.is(200);
    run.apply(&planned, &MONTH).await;
    run.cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(201);
    run.apply(&planned, &MONTH).await;
    run.has([nar, narinfo]);
}

#[tokio::test]
async fn a_path_that_is_uploaded_again_is_kept() {
    let run = TestRun::new();
    let sample = sample(9, b"contents");
    let (nar, narinfo) = (&sample.nar_path[1..], &sample.narinfo_path[1..]);
    dir::put(run.dir(), nar, &sample.nar, run.days_ago(40));
    dir::put(run.dir(), narinfo, &sample.narinfo, run.days_ago(40));
    let planned = run.plan(&MONTH).await;
    assert_eq!(planned.1.removals.len(), 2);
    run.cache.put(&sample.narinfo_path, sample.narinfo.clone()).await.is(200);
    let outcome = run.apply(&planned, &MONTH).await;
    run.has([nar, narinfo]);
    assert_eq!(outcome.kept_in_use, 1);
}

#[tokio::test]
async fn a_pin_that_is_set_during_a_collection_is_respected() {
    let (run, planned) = about_to_be_collected().await;
    Pins::of(run.cache.cache())
        .set("late", &[dir::store_path(1)])
        .await
        .expect("the request succeeds");
    run.apply(&planned, &MONTH).await;
    run.has(whole([1, 2, 3]));
}

#[tokio::test]
async fn a_removed_narinfo_is_not_served_from_memory() {
    let run = TestRun::new();
    dir::put_path(run.dir(), 1, &[], run.now - HOUR / 2);
    let path = format!("/{}", dir::narinfo(1));
    run.cache.get(&path).await.is(200);
    // The narinfo is in memory now, and its use is not recorded again.
    let past = run.now + DAY * 40;
    let stop = CancellationToken::new();
    run.cache.collector().collect(&MONTH, past, &stop, |_| {}).await.expect("the request succeeds");
    run.has([] as [&str; 0]);
    run.cache.get(&path).await.is(404);
    run.cache.head(&path).await.is(404);
}
