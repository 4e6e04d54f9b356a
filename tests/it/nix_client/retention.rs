//! A cache whose limit shrinks step by step: every path that it still lists can be substituted, and removed paths
//! can be uploaded again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix_stored::cache::{Actor, GRACE};
use nix_stored::retention::{Collector, GcReport, Limits, Pins};
use tokio_util::sync::CancellationToken;

use crate::support::cache_dir::{assert_consistent, assert_staging_is_empty, objects};
use crate::support::closures::{
    Layers, assert_closures_are_complete, assert_no_orphans, last_used, narinfo_of, references,
    trash,
};
use crate::support::daemon::Daemon;
use crate::support::fixture::fixture;
use crate::support::in_process::open_cache;
use crate::support::nix::{Nix, utf8, with_paths};
use crate::support::scratch::Scratch;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Roots with their closures, least recently used first. Some are built and signed, and some are
/// texts with shared references.
struct Source {
    nix: Nix,
    roots: Vec<String>,
}

impl Source {
    fn new() -> Self {
        let fixture = fixture();
        let nix = fixture.reader();
        let built = [fixture.outputs("app"), fixture.outputs("split")].concat();
        nix.copy_from_store(&fixture.nix(), &built);
        let layers = Layers::new("kept", 8, 30_000);
        let texts = nix.add_texts(&layers.texts);
        let mut roots: Vec<String> = layers.roots.iter().map(|&root| texts[root].clone()).collect();
        // The output of `split` that refers to the others is `dev`.
        let dev = built.iter().find(|path| path.ends_with("-dev")).expect("an output");
        roots.insert(3, dev.clone());
        roots.insert(6, fixture.output("app"));
        Self { nix, roots }
    }

    /// The time since the last use: longer than the grace period, except for the last root, which
    /// was used an hour ago.
    fn unused(&self, root: &str) -> Duration {
        let place = self.roots.iter().position(|other| other == root).expect("a root");
        match self.roots.len() - 1 - place {
            0 => DAY / 24,
            before => DAY * (1 + u32::try_from(before).expect("a small number")),
        }
    }

    /// Sets the times of all other paths to long ago, as if clients had cached their lookups.
    fn set_old(&self, dir: &Path) {
        for key in objects(dir).iter().filter(|key| *key != "nix-cache-info") {
            last_used(dir, key, 60 * DAY);
        }
        for root in self.listed(dir) {
            last_used(dir, &narinfo_of(&root), self.unused(&root));
        }
    }

    /// The roots in a cache.
    fn listed(&self, dir: &Path) -> Vec<String> {
        let there = |root: &&String| dir.join(narinfo_of(root)).exists();
        self.roots.iter().filter(there).cloned().collect()
    }
}

/// The total size of the objects, in bytes.
fn size(dir: &Path) -> u64 {
    let keys = objects(dir).into_iter().filter(|key| key != "nix-cache-info");
    keys.map(|key| dir.join(key).metadata().expect("present").len()).sum()
}

fn collect(dir: &Path, max_size: u64) -> GcReport {
    let limits = Limits { max_size: Some(max_size), max_age: None, grace: GRACE };
    let runtime = tokio::runtime::Runtime::new().expect("the runtime starts");
    let collected = async {
        let stop = CancellationToken::new();
        let collector = Collector::new(open_cache(dir, GRACE), Actor::collector());
        collector.collect(&limits, SystemTime::now(), &stop, |_| {}).await
    };
    runtime.block_on(collected).expect("the collection succeeds")
}

/// Checks that Nix substitutes all listed paths into an empty store, and that the others are
/// absent.
fn assert_nix_agrees(dir: &Path, source: &Source, gone: &[String]) {
    // A new daemon, which knows only the uses that are recorded on disk.
    let daemon = Daemon::builder().dir(dir).start();
    let kept = source.listed(dir);
    let reader = fixture().reader();
    reader.copy_from(daemon.url(), &kept);
    reader.assert_has_the_same(&source.nix, &kept);
    for path in gone {
        assert_eq!(daemon.get(&format!("/{}", narinfo_of(path))).0, 404, "{path}");
    }
    if let Some(path) = gone.first() {
        let printed = reader.fails(&["nix", "copy", "--from", daemon.url(), path]);
        assert!(printed.contains("no substituter that can build it"), "{printed}");
        assert!(!printed.contains("HTTP error"), "{printed}");
        assert!(!reader.real(path).exists());
        reader.fails(&["nix", "path-info", "--store", daemon.url(), path]);
    }
}

#[test]
fn closures_that_are_kept_can_be_substituted_while_a_cache_shrinks() {
    let source = Source::new();
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let upload = |daemon: &Daemon| {
        let url = format!("{}?compression=none", daemon.url());
        source.nix.fresh_home().copy_to(&url, &source.roots);
    };
    upload(&daemon);
    daemon.stop();
    let (pinned, last) = (&source.roots[0], source.roots.last().expect("not empty"));
    let runtime = tokio::runtime::Runtime::new().expect("the runtime starts");
    let base = pinned["/nix/store/".len()..].parse().expect("a store path");
    runtime
        .block_on(async { Pins::of(&open_cache(&dir, GRACE)).set("release", &[base]).await })
        .expect("pinned");

    let everything: BTreeSet<String> = references(&dir).into_keys().collect();
    let mut listed = source.roots.len();
    let mut limit = size(&dir);
    loop {
        source.set_old(&dir);
        let report = collect(&dir, limit);
        assert_eq!(report.size_after, size(&dir), "{report:?}");
        let kept = source.listed(&dir);
        let first = limit == report.size_before;
        let fewer = if first { kept.len() == listed } else { kept.len() < listed };
        assert!(fewer, "there were {listed} roots: {kept:#?} {report:?}");
        listed = kept.len();
        let of_the_rest = kept.strip_prefix(std::slice::from_ref(pinned)).expect("pinned");
        assert!(
            source.roots.ends_with(of_the_rest),
            "a path was removed before an older one: {kept:#?}"
        );
        assert!(kept.contains(last), "the last root was used an hour ago");

        assert_consistent(&dir);
        assert_closures_are_complete(&dir);
        assert_no_orphans(&dir);
        assert_eq!(trash(&dir), [""; 0]);
        let here: BTreeSet<String> = references(&dir).into_keys().collect();
        let gone: Vec<String> = everything.difference(&here).cloned().collect();
        assert_nix_agrees(&dir, &source, &gone);
        if listed == 2 {
            break;
        }
        assert_eq!(report.over_limit, 0, "{report:?}");
        limit = report.size_after * 9 / 10;
    }
    // Only protected paths are left, and they are kept whatever the limit is.
    source.set_old(&dir);
    assert!(collect(&dir, 0).over_limit > 0);
    let protected = source.nix.closure(&[pinned.clone(), last.clone()]);
    assert_eq!(references(&dir).into_keys().collect::<Vec<_>>(), protected);

    let daemon = Daemon::builder().dir(&dir).start();
    upload(&daemon);
    assert_eq!(references(&dir).into_keys().collect::<BTreeSet<_>>(), everything);
    assert_staging_is_empty(&dir);
    let reader = Nix::new().substituting_from(daemon.url(), fixture().public_key());
    reader.ok(&with_paths(&["nix-store", "-r"], &source.roots));
    reader.assert_has_the_same(&source.nix, &source.roots);
    drop(daemon);
    assert_nix_agrees(&dir, &source, &[]);
}

#[test]
fn signing_a_path_again_counts_as_use_of_its_closure() {
    let fixture = fixture();
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let daemon = Daemon::builder().dir(&dir).start();
    let app = fixture.output("app");
    fixture.nix().copy_to(daemon.url(), std::slice::from_ref(&app));
    daemon.stop();
    let needs = references(&dir)[&app].clone();
    assert_eq!(needs.len(), 2);
    objects(&dir).iter().for_each(|key| last_used(&dir, key, 60 * DAY));

    let daemon = Daemon::builder().dir(&dir).start();
    let nix = fixture.nix();
    let key = nix.signing_key("again-1");
    nix.ok(&["nix", "store", "sign", "--store", daemon.url(), "-k", utf8(&key.secret), &app]);
    for path in &needs {
        let narinfo = dir.join(narinfo_of(path)).metadata().expect("present");
        let unused = narinfo
            .accessed()
            .expect("the file system has access times")
            .elapsed()
            .unwrap_or_default();
        assert!(unused < DAY, "{path}: {unused:?}");
    }
}
