//! Random caches and limits: closures stay complete, and no more is removed than necessary.

use std::collections::BTreeSet;
use std::fs::{File, FileTimes};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use nix_stored::cache::{Actor, Cache};
use nix_stored::config::Admission;
use nix_stored::inventory::Inventory;
use nix_stored::nix::CacheInfo;
use nix_stored::retention::{
    Analysis, Collector, KeepReason, Limits, Pin, Pins, Plan, Reason, Removal, Verdict,
};
use nix_stored::store::FsStore;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use tokio_util::sync::CancellationToken;

use super::dir;
use super::random_cache::{CacheFile, Owner, RandomCache, hours, random_cache};
use crate::support::scratch::Scratch;

/// The grace period, in hours.
const GRACE: u64 = 24;

/// The expected result for a random cache.
struct Model<'a> {
    random: &'a RandomCache,
    files: Vec<CacheFile>,
    needs: Vec<Vec<bool>>,
    /// For each path, the time since its last use or the last use of a referrer.
    ages: Vec<u64>,
    /// Whether each path is in the closure of a pin.
    pinned: Vec<bool>,
    /// Whether each path must be kept.
    held: Vec<bool>,
}

impl<'a> Model<'a> {
    fn new(random: &'a RandomCache) -> Self {
        let (files, needs) = (random.files(), random.needs());
        let count = random.paths.len();
        let own = |path: usize| {
            let own = files.iter().filter(|file| random.users(file.owner).contains(&path));
            own.map(|file| file.age).min().expect("a path has a narinfo")
        };
        let own: Vec<u64> = (0..count).map(own).collect();
        let users = |path: usize| {
            let needs = &needs;
            (0..count).filter(move |other| needs[*other][path])
        };
        let ages = (0..count)
            .map(|path| users(path).map(|by| own[by]).min().expect("the path itself is an item"));
        let ages: Vec<u64> = ages.collect();
        let roots: BTreeSet<usize> = random.pins.iter().flatten().copied().collect();
        let pinned = (0..count).map(|path| users(path).any(|by| roots.contains(&by)));
        let pinned: Vec<bool> = pinned.collect();
        let held = (0..count).map(|path| pinned[path] || ages[path] < GRACE).collect();
        Self { random, files, ages, pinned, held, needs }
    }

    /// The time since the last use of an unneeded file, or of one of its side files.
    fn age_of_unneeded(&self, file: &CacheFile) -> u64 {
        match file.owner {
            Owner::None => file.age,
            owner => {
                let group = self.files.iter().filter(|other| other.owner == owner);
                group.map(|other| other.age).min().expect("the path itself is an item")
            }
        }
    }

    fn is_too_old(&self, age: u64) -> bool {
        age >= GRACE && self.random.max_age.is_some_and(|max| age > max)
    }

    /// The size of the cache with these paths, and these files that no path uses.
    fn size(&self, paths: impl Fn(usize) -> bool, unneeded: impl Fn(&CacheFile) -> bool) -> u64 {
        let stays = |file: &&CacheFile| {
            let users = self.random.users(file.owner);
            if users.is_empty() { unneeded(file) } else { users.into_iter().any(&paths) }
        };
        self.files.iter().filter(stays).map(|file| file.bytes.len() as u64).sum()
    }

    /// Whether no path uses a file, so that it is removed without a limit.
    fn is_unused(&self, file: &CacheFile) -> bool {
        matches!(file.owner, Owner::Nar(_)) && self.age_of_unneeded(file) >= GRACE
    }

    /// The properties that hold after every removal, whatever was used meanwhile.
    fn check_whole(&self, gone: &BTreeSet<String>) -> Result<(), TestCaseError> {
        let here = |path: usize| !gone.contains(&dir::narinfo(path));
        for (from, needed) in self.needs.iter().enumerate().filter(|(from, _)| here(*from)) {
            for to in (0..needed.len()).filter(|to| needed[*to]) {
                prop_assert!(here(to), "path {from} has lost path {to}");
            }
        }
        for file in &self.files {
            let key = file.key.key();
            let user = self.random.users(file.owner).into_iter().find(|user| here(*user));
            if let (Some(user), Owner::Nar(_) | Owner::Log(_)) = (user, file.owner) {
                prop_assert!(!gone.contains(&key), "path {user} has lost {key}");
            }
            prop_assert!(file.age >= GRACE || !gone.contains(&key), "{key} was used just now");
        }
        for path in (0..self.held.len()).filter(|path| self.held[*path]) {
            prop_assert!(here(path), "path {path} is pinned or was used just now, or is needed");
        }
        Ok(())
    }

    /// The properties that hold if nothing was used meanwhile.
    fn check_done(&self, plan: &Plan, gone: &BTreeSet<String>) -> Result<(), TestCaseError> {
        let here = |path: usize| !gone.contains(&dir::narinfo(path));
        let stays = |file: &CacheFile| !gone.contains(&file.key.key());
        for file in &self.files {
            let users = self.random.users(file.owner);
            let expected = match file.owner {
                Owner::None if self.is_too_old(file.age) => false,
                Owner::None => continue,
                _ if users.is_empty() => !self.is_unused(file),
                _ => users.into_iter().any(here),
            };
            prop_assert_eq!(stays(file), expected, "{}", &file.key);
        }
        for (path, &age) in self.ages.iter().enumerate() {
            let must_go = !self.held[path] && self.is_too_old(age);
            prop_assert!(!must_go || !here(path), "path {path} is {age} hours old");
        }

        let size = self.size(here, stays);
        prop_assert_eq!(plan.size_before, self.random.size());
        prop_assert_eq!(plan.size_after, size);
        let aged = |path: usize| self.held[path] || !self.is_too_old(self.ages[path]);
        let aged_too = |file: &CacheFile| match file.owner {
            Owner::None => !self.is_too_old(file.age),
            _ => !self.is_unused(file),
        };
        let Some(limit) = plan.max_size.filter(|limit| self.size(aged, aged_too) > *limit) else {
            prop_assert_eq!(plan.over_limit(), 0);
            prop_assert_eq!(
                size,
                self.size(aged, aged_too),
                "paths were removed that are not too old"
            );
            return Ok(());
        };
        let least = self.size(|path| self.held[path], |file| self.age_of_unneeded(file) < GRACE);
        let target = limit * 90 / 100;
        prop_assert!(size <= target || size == least, "{size} bytes; {least} to {target} could be");
        prop_assert_eq!(plan.over_limit(), size.saturating_sub(limit));

        // In order of age, and no more than needed.
        let unowned = self.files.iter().filter(|file| file.owner == Owner::None);
        let unowned = unowned.map(|file| (stays(file), file.age < GRACE, file.age));
        let paths = (0..self.ages.len()).map(|path| (here(path), self.held[path], self.ages[path]));
        let all: Vec<(bool, bool, u64)> = paths.chain(unowned).collect();
        let youngest_gone = all.iter().filter(|(here, ..)| !here).map(|(.., age)| *age).min();
        let oldest_left = all.iter().filter(|(here, held, _)| *here && !held);
        if let (Some(gone), Some(left)) = (youngest_gone, oldest_left.map(|(.., age)| *age).max()) {
            prop_assert!(
                gone >= left,
                "a path unused for {gone} hours was removed, and one unused for {left} hours was kept"
            );
        }
        Ok(())
    }

    /// Whether the last path removed for the size limit was necessary.
    fn check_last(
        &self,
        plan: &Plan,
        inventory: &Inventory,
        gone: &BTreeSet<String>,
    ) -> Result<(), TestCaseError> {
        let by_size = plan.removals.iter().rev().find(|removal| {
            matches!(removal, Removal::Path(_, Reason::Size) | Removal::Unowned(_, Reason::Size))
        });
        let Some(limit) = plan.max_size.filter(|_| by_size.is_some()) else {
            return Ok(());
        };
        let here = |path: usize| !gone.contains(&dir::narinfo(path));
        let stays = |file: &CacheFile| !gone.contains(&file.key.key());
        let with_it = match by_size {
            Some(Removal::Path(at, _)) => {
                let last = number(inventory, *at);
                let group = |path: usize| self.needs[path][last] && self.needs[last][path];
                self.size(|path| here(path) || group(path), stays)
            }
            Some(Removal::Unowned(at, _)) => {
                let last = &inventory.unowned[*at].path;
                self.size(here, |file| stays(file) || file.key == *last)
            }
            _ => unreachable!("it was chosen so"),
        };
        prop_assert!(with_it > limit * 90 / 100, "{with_it} bytes would have been few enough");
        Ok(())
    }

    /// Checks the order, the reasons, and the explanations.
    fn check_reasons(
        &self,
        analysis: &Analysis<'_>,
        inventory: &Inventory,
        plan: &Plan,
        limits: &Limits,
        now: SystemTime,
    ) -> Result<(), TestCaseError> {
        let mut gone = Vec::new();
        let mut shared = false;
        for removal in &plan.removals {
            match *removal {
                Removal::Path(at, reason) => {
                    let path = number(inventory, at);
                    prop_assert!(!shared, "a path is removed after a shared object");
                    let before = gone.iter().find(|(before, _): &&(usize, Reason)| {
                        self.needs[path][*before] && !self.needs[*before][path]
                    });
                    prop_assert!(before.is_none(), "{before:?} is removed before path {path}");
                    let old = self.is_too_old(self.ages[path]);
                    prop_assert_eq!(reason, if old { Reason::Age } else { Reason::Size });
                    gone.push((path, reason));
                }
                Removal::Unowned(at, reason) => {
                    let age = now
                        .duration_since(inventory.unowned[at].used)
                        .expect("the time is in the past");
                    let old = self.is_too_old(age.as_secs() / 3600);
                    prop_assert_eq!(reason, if old { Reason::Age } else { Reason::Size });
                }
                Removal::Shared(at, reason) => {
                    shared = true;
                    let key = &inventory.shared[at].path;
                    let file = self.files.iter().find(|file| file.key == *key);
                    let users = self.random.users(file.expect("an owner with a known kind").owner);
                    prop_assert_eq!(reason == Reason::Orphan, users.is_empty(), "{}", key);
                }
            }
        }
        for (path, age) in self.ages.iter().enumerate() {
            let hash = dir::hash(path);
            let verdict = analysis.explain(hash, plan, limits, now).expect("the path is present");
            let planned = gone.iter().find(|(gone, _)| *gone == path).map(|(_, reason)| *reason);
            let kept = match (verdict, planned) {
                (Verdict::Removed(reason), planned) => {
                    prop_assert_eq!(Some(reason), planned);
                    continue;
                }
                (Verdict::Kept(kept), planned) => {
                    prop_assert_eq!(planned, None);
                    kept
                }
            };
            let by_use = |by: usize, used: SystemTime| {
                self.needs[number(inventory, by)][path] && used == now - hours(*age)
            };
            let right = match kept {
                KeepReason::Pinned { pin, by } => {
                    let by = number(inventory, by);
                    self.random.pins[pin].contains(&by) && self.needs[by][path] && self.pinned[path]
                }
                KeepReason::Recent { by, used } => *age < GRACE && by_use(by, used),
                KeepReason::WithinLimits { by, used } => !self.held[path] && by_use(by, used),
            };
            prop_assert!(right, "path {path} is explained as kept because of {kept:?}");
        }
        prop_assert_eq!(analysis.explain(dir::hash(999), plan, limits, now), None);
        Ok(())
    }

    fn check(
        &self,
        inventory: &Inventory,
        pins: &[Pin],
        now: SystemTime,
        gone: impl FnOnce(&Plan) -> Result<BTreeSet<String>, TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let limits = self.random.limits();
        let analysis = Analysis::new(inventory, pins);
        let plan = analysis.plan(&limits, now);
        self.check_reasons(&analysis, inventory, &plan, &limits, now)?;
        let gone = gone(&plan)?;
        self.check_whole(&gone)?;
        self.check_done(&plan, &gone)?;
        self.check_last(&plan, inventory, &gone)
    }
}

/// The number of the path at an index of the inventory.
fn number(inventory: &Inventory, at: usize) -> usize {
    let name = inventory.paths[at].store_path.name();
    name["path-".len()..].parse().expect("a number")
}

/// The keys that a plan removes.
fn planned(inventory: &Inventory, plan: &Plan) -> BTreeSet<String> {
    let mut gone = BTreeSet::new();
    for removal in &plan.removals {
        let (own, sides) = match *removal {
            Removal::Path(at, _) => {
                let path = &inventory.paths[at];
                (dir::narinfo(number(inventory, at)), &path.side_files)
            }
            Removal::Shared(at, _) => {
                (inventory.shared[at].path.key(), &inventory.shared[at].side_files)
            }
            Removal::Unowned(at, _) => {
                (inventory.unowned[at].path.key(), &inventory.unowned[at].side_files)
            }
        };
        gone.insert(own);
        gone.extend(sides.iter().map(nix_stored::nix::CachePath::key));
    }
    gone
}

/// The keys of removed files.
fn missing(model: &Model<'_>, dir: &Path) -> BTreeSet<String> {
    let keys = model.files.iter().map(|file| file.key.key());
    keys.filter(|key| !dir.join(key).exists()).collect()
}

/// Opens the cache in a directory.
fn open(dir: &Path) -> Arc<Cache> {
    let store = FsStore::open(dir, 0).expect("the store opens");
    Arc::new(Cache::new(Arc::new(store.into()), CacheInfo::default(), Admission::default()))
}

fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the runtime starts")
        .block_on(work)
}

/// Sets the last use of an object to now. Returns false if it is absent.
fn touch(dir: &Path, key: &str) -> bool {
    let times = FileTimes::new().set_accessed(SystemTime::now());
    File::open(dir.join(key)).is_ok_and(|file| file.set_times(times).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn a_plan_keeps_closures_complete_and_removes_just_enough(random in random_cache(true)) {
        let now = dir::now();
        let inventory = random.inventory(now);
        let model = Model::new(&random);
        model.check(&inventory, &random.pins(), now, |plan| Ok(planned(&inventory, plan)))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn a_collection_removes_exactly_the_planned_paths(random in random_cache(true)) {
        let (now, scratch) = (dir::now(), Scratch::new());
        random.write(scratch.path(), now);
        let cache = open(scratch.path());
        let collector = Collector::new(Arc::clone(&cache), Actor::silent());
        in_a_runtime(async {
            let inventory = cache.inventory(|_| {}).await.expect("readable");
            let pins = Pins::of(&cache).list().await.expect("readable");
            prop_assert_eq!(&pins, &random.pins());
            let model = Model::new(&random);
            let plan = Analysis::new(&inventory, &pins).plan(&random.limits(), now);
            let stop = CancellationToken::new();
            let outcome = collector.execute(&inventory, &plan, &random.limits(), now, &stop, |_| {}).await;
            let outcome = outcome.expect("the disk works");
            prop_assert_eq!(outcome.paths + outcome.shared + outcome.unowned, plan.removals.len());
            prop_assert_eq!(plan.size_before - outcome.freed, plan.size_after);
            prop_assert_eq!((outcome.kept_in_use, outcome.stopped), (0, false));
            let gone = missing(&model, scratch.path());
            prop_assert_eq!(&gone, &planned(&inventory, &plan));
            let objects = dir::sizes(scratch.path());
            let size = objects.iter().filter(|(key, _)| *key != "nix-cache-info");
            prop_assert_eq!(size.map(|(_, size)| size).sum::<u64>(), plan.size_after);
            model.check(&inventory, &pins, now, |_| Ok(gone))
        })?;
    }

    #[test]
    fn a_collection_keeps_used_paths_and_stops_at_any_removal(
        random in random_cache(false),
        uses in proptest::collection::vec((any::<Index>(), any::<Index>()), 0..4),
        stop_after: Option<Index>,
    ) {
        prop_assume!(!random.paths.is_empty());
        let (now, scratch) = (dir::now(), Scratch::new());
        random.write(scratch.path(), now);
        let cache = open(scratch.path());
        let collector = Collector::new(Arc::clone(&cache), Actor::silent());
        in_a_runtime(async {
            let inventory = cache.inventory(|_| {}).await.expect("readable");
            let pins = Pins::of(&cache).list().await.expect("readable");
            let model = Model::new(&random);
            let plan = Analysis::new(&inventory, &pins).plan(&random.limits(), now);
            let moments = plan.removals.len() + 1;
            let stop = CancellationToken::new();
            let stop_after = stop_after.map(|after| after.index(moments));
            let mut used = Vec::new();
            let mut moment = |done: usize| {
                for (path, _) in uses.iter().filter(|(_, when)| when.index(moments) == done) {
                    let path = path.index(random.paths.len());
                    if touch(scratch.path(), &dir::narinfo(path)) {
                        used.push(path);
                    }
                }
                if stop_after == Some(done) {
                    stop.cancel();
                }
            };
            moment(0);
            let progress = |done: u64| moment(done as usize);
            let outcome = collector.execute(&inventory, &plan, &random.limits(), now, &stop, progress).await;
            let outcome = outcome.expect("the disk works");
            let done = outcome.paths + outcome.shared + outcome.unowned;
            if let Some(most) = stop_after {
                prop_assert!(done <= most);
            }
            let gone = missing(&model, scratch.path());
            model.check_whole(&gone)?;
            for path in used {
                for needed in (0..random.paths.len()).filter(|other| model.needs[path][*other]) {
                    let key = dir::narinfo(needed);
                    prop_assert!(!gone.contains(&key), "{path} was used, and {key} was removed");
                }
            }
            Ok(())
        })?;
    }
}
