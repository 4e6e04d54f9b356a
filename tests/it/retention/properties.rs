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
use super::world::{Owner, Thing, World, hours, world};
use crate::support::scratch::Scratch;

/// The time of grace, in hours.
const GRACE: u64 = 24;

/// What must come of a world.
struct Model<'a> {
    world: &'a World,
    things: Vec<Thing>,
    needs: Vec<Vec<bool>>,
    /// For each path, how long ago it or what needs it was used.
    ages: Vec<u64>,
    /// Whether a pin needs it.
    pinned: Vec<bool>,
    /// Whether it may not go.
    held: Vec<bool>,
}

impl<'a> Model<'a> {
    fn new(world: &'a World) -> Self {
        let (things, needs) = (world.things(), world.needs());
        let count = world.paths.len();
        let own = |path: usize| {
            let own = things.iter().filter(|thing| world.users(thing.owner).contains(&path));
            own.map(|thing| thing.age).min().expect("it has a narinfo")
        };
        let own: Vec<u64> = (0..count).map(own).collect();
        let users = |path: usize| {
            let needs = &needs;
            (0..count).filter(move |other| needs[*other][path])
        };
        let ages = (0..count).map(|path| users(path).map(|by| own[by]).min().expect("itself"));
        let ages: Vec<u64> = ages.collect();
        let roots: BTreeSet<usize> = world.pins.iter().flatten().copied().collect();
        let pinned = (0..count).map(|path| users(path).any(|by| roots.contains(&by)));
        let pinned: Vec<bool> = pinned.collect();
        let held = (0..count).map(|path| pinned[path] || ages[path] < GRACE).collect();
        Self { world, things, ages, pinned, held, needs }
    }

    /// How long what nobody needs has been unused: itself, and what goes with it.
    fn age_of_unneeded(&self, thing: &Thing) -> u64 {
        match thing.owner {
            Owner::Nobody => thing.age,
            owner => {
                let group = self.things.iter().filter(|other| other.owner == owner);
                group.map(|other| other.age).min().expect("itself")
            }
        }
    }

    fn is_too_old(&self, age: u64) -> bool {
        age >= GRACE && self.world.max_age.is_some_and(|max| age > max)
    }

    /// Bytes when these paths are here, and of what no path needs, these things.
    fn size(&self, paths: impl Fn(usize) -> bool, unneeded: impl Fn(&Thing) -> bool) -> u64 {
        let stays = |thing: &&Thing| {
            let users = self.world.users(thing.owner);
            if users.is_empty() { unneeded(thing) } else { users.into_iter().any(&paths) }
        };
        self.things.iter().filter(stays).map(|thing| thing.bytes.len() as u64).sum()
    }

    /// What no path needs and no limit has to ask for.
    fn is_rubbish(&self, thing: &Thing) -> bool {
        matches!(thing.owner, Owner::Nar(_)) && self.age_of_unneeded(thing) >= GRACE
    }

    /// What holds whenever something has gone, whoever used what in the meantime.
    fn check_whole(&self, gone: &BTreeSet<String>) -> Result<(), TestCaseError> {
        let here = |path: usize| !gone.contains(&dir::narinfo(path));
        for (from, needed) in self.needs.iter().enumerate().filter(|(from, _)| here(*from)) {
            for to in (0..needed.len()).filter(|to| needed[*to]) {
                prop_assert!(here(to), "path {from} has lost path {to}");
            }
        }
        for thing in &self.things {
            let key = thing.key.key();
            let user = self.world.users(thing.owner).into_iter().find(|user| here(*user));
            if let (Some(user), Owner::Nar(_) | Owner::Log(_)) = (user, thing.owner) {
                prop_assert!(!gone.contains(&key), "path {user} has lost {key}");
            }
            prop_assert!(thing.age >= GRACE || !gone.contains(&key), "{key} was used just now");
        }
        for path in (0..self.held.len()).filter(|path| self.held[*path]) {
            prop_assert!(here(path), "path {path} is pinned or was used just now, or is needed");
        }
        Ok(())
    }

    /// What holds when nobody used anything in the meantime.
    fn check_done(&self, plan: &Plan, gone: &BTreeSet<String>) -> Result<(), TestCaseError> {
        let here = |path: usize| !gone.contains(&dir::narinfo(path));
        let stays = |thing: &Thing| !gone.contains(&thing.key.key());
        for thing in &self.things {
            let users = self.world.users(thing.owner);
            let expected = match thing.owner {
                Owner::Nobody if self.is_too_old(thing.age) => false,
                Owner::Nobody => continue,
                _ if users.is_empty() => !self.is_rubbish(thing),
                _ => users.into_iter().any(here),
            };
            prop_assert_eq!(stays(thing), expected, "{}", &thing.key);
        }
        for (path, &age) in self.ages.iter().enumerate() {
            let must_go = !self.held[path] && self.is_too_old(age);
            prop_assert!(!must_go || !here(path), "path {path} is {age} hours old");
        }

        let size = self.size(here, stays);
        prop_assert_eq!(plan.size_before, self.world.size());
        prop_assert_eq!(plan.size_after, size);
        let aged = |path: usize| self.held[path] || !self.is_too_old(self.ages[path]);
        let aged_too = |thing: &Thing| match thing.owner {
            Owner::Nobody => !self.is_too_old(thing.age),
            _ => !self.is_rubbish(thing),
        };
        let Some(limit) = plan.max_size.filter(|limit| self.size(aged, aged_too) > *limit) else {
            prop_assert_eq!(plan.over_limit(), 0);
            prop_assert_eq!(size, self.size(aged, aged_too), "more went than was too old");
            return Ok(());
        };
        let least = self.size(|path| self.held[path], |thing| self.age_of_unneeded(thing) < GRACE);
        let target = limit * 90 / 100;
        prop_assert!(size <= target || size == least, "{size} bytes; {least} to {target} could be");
        prop_assert_eq!(plan.over_limit(), size.saturating_sub(limit));

        // From the oldest on, and no further than needed.
        let loose = self.things.iter().filter(|thing| thing.owner == Owner::Nobody);
        let loose = loose.map(|thing| (stays(thing), thing.age < GRACE, thing.age));
        let paths = (0..self.ages.len()).map(|path| (here(path), self.held[path], self.ages[path]));
        let all: Vec<(bool, bool, u64)> = paths.chain(loose).collect();
        let youngest_gone = all.iter().filter(|(here, ..)| !here).map(|(.., age)| *age).min();
        let oldest_left = all.iter().filter(|(here, held, _)| *here && !held);
        if let (Some(gone), Some(left)) = (youngest_gone, oldest_left.map(|(.., age)| *age).max()) {
            prop_assert!(gone >= left, "{gone} hours old went, {left} hours old stayed");
        }
        Ok(())
    }

    /// Whether the last one that went for its size had to.
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
        let stays = |thing: &Thing| !gone.contains(&thing.key.key());
        let with_it = match by_size {
            Some(Removal::Path(at, _)) => {
                let last = number(inventory, *at);
                let group = |path: usize| self.needs[path][last] && self.needs[last][path];
                self.size(|path| here(path) || group(path), stays)
            }
            Some(Removal::Unowned(at, _)) => {
                let last = &inventory.unowned[*at].path;
                self.size(here, |thing| stays(thing) || thing.key == *last)
            }
            _ => unreachable!("it was chosen so"),
        };
        prop_assert!(with_it > limit * 90 / 100, "{with_it} bytes would have been few enough");
        Ok(())
    }

    /// The order, the reasons, and the explanations.
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
                    prop_assert!(!shared, "a path goes after a shared object");
                    let before = gone.iter().find(|(before, _): &&(usize, Reason)| {
                        self.needs[path][*before] && !self.needs[*before][path]
                    });
                    prop_assert!(before.is_none(), "{before:?} goes before path {path}");
                    let old = self.is_too_old(self.ages[path]);
                    prop_assert_eq!(reason, if old { Reason::Age } else { Reason::Size });
                    gone.push((path, reason));
                }
                Removal::Unowned(at, reason) => {
                    let age = now.duration_since(inventory.unowned[at].used).expect("it is past");
                    let old = self.is_too_old(age.as_secs() / 3600);
                    prop_assert_eq!(reason, if old { Reason::Age } else { Reason::Size });
                }
                Removal::Shared(at, reason) => {
                    shared = true;
                    let key = &inventory.shared[at].path;
                    let thing = self.things.iter().find(|thing| thing.key == *key);
                    let users = self.world.users(thing.expect("it is one of ours").owner);
                    prop_assert_eq!(reason == Reason::Orphan, users.is_empty(), "{}", key);
                }
            }
        }
        for (path, age) in self.ages.iter().enumerate() {
            let hash = dir::hash(path);
            let verdict = analysis.explain(hash, plan, limits, now).expect("it is here");
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
                    self.world.pins[pin].contains(&by) && self.needs[by][path] && self.pinned[path]
                }
                KeepReason::Recent { by, used } => *age < GRACE && by_use(by, used),
                KeepReason::WithinLimits { by, used } => !self.held[path] && by_use(by, used),
            };
            prop_assert!(right, "path {path} stays, it says, because {kept:?}");
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
        let limits = self.world.limits();
        let analysis = Analysis::new(inventory, pins);
        let plan = analysis.plan(&limits, now);
        self.check_reasons(&analysis, inventory, &plan, &limits, now)?;
        let gone = gone(&plan)?;
        self.check_whole(&gone)?;
        self.check_done(&plan, &gone)?;
        self.check_last(&plan, inventory, &gone)
    }
}

/// The number of the path at a place of the inventory.
fn number(inventory: &Inventory, at: usize) -> usize {
    let name = inventory.paths[at].store_path.name();
    name["path-".len()..].parse().expect("a number")
}

/// The keys that a plan takes away.
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

/// What is not there any more.
fn missing(model: &Model<'_>, dir: &Path) -> BTreeSet<String> {
    let keys = model.things.iter().map(|thing| thing.key.key());
    keys.filter(|key| !dir.join(key).exists()).collect()
}

/// A cache in this directory.
fn open(dir: &Path) -> Arc<Cache> {
    let store = FsStore::open(dir, 0).expect("the store can be opened");
    Arc::new(Cache::new(Arc::new(store.into()), CacheInfo::default(), Admission::default()))
}

fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
        .block_on(work)
}

/// Says of an object that it is used now; false if it is gone.
fn touch(dir: &Path, key: &str) -> bool {
    let times = FileTimes::new().set_accessed(SystemTime::now());
    File::open(dir.join(key)).is_ok_and(|file| file.set_times(times).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn a_plan_keeps_closures_complete_and_removes_just_enough(world in world(true)) {
        let now = dir::now();
        let inventory = world.inventory(now);
        let model = Model::new(&world);
        model.check(&inventory, &world.pins(), now, |plan| Ok(planned(&inventory, plan)))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn a_collection_removes_exactly_the_planned_paths(world in world(true)) {
        let (now, scratch) = (dir::now(), Scratch::new());
        world.write(scratch.path(), now);
        let cache = open(scratch.path());
        let collector = Collector::new(Arc::clone(&cache), Actor::silent());
        in_a_runtime(async {
            let inventory = cache.inventory(|_| {}).await.expect("readable");
            let pins = Pins::of(&cache).list().await.expect("readable");
            prop_assert_eq!(&pins, &world.pins());
            let model = Model::new(&world);
            let plan = Analysis::new(&inventory, &pins).plan(&world.limits(), now);
            let stop = CancellationToken::new();
            let outcome = collector.execute(&inventory, &plan, &world.limits(), now, &stop, |_| {}).await;
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
        world in world(false),
        uses in proptest::collection::vec((any::<Index>(), any::<Index>()), 0..4),
        stop_after: Option<Index>,
    ) {
        prop_assume!(!world.paths.is_empty());
        let (now, scratch) = (dir::now(), Scratch::new());
        world.write(scratch.path(), now);
        let cache = open(scratch.path());
        let collector = Collector::new(Arc::clone(&cache), Actor::silent());
        in_a_runtime(async {
            let inventory = cache.inventory(|_| {}).await.expect("readable");
            let pins = Pins::of(&cache).list().await.expect("readable");
            let model = Model::new(&world);
            let plan = Analysis::new(&inventory, &pins).plan(&world.limits(), now);
            let moments = plan.removals.len() + 1;
            let stop = CancellationToken::new();
            let stop_after = stop_after.map(|after| after.index(moments));
            let mut used = Vec::new();
            let mut moment = |done: usize| {
                for (path, _) in uses.iter().filter(|(_, when)| when.index(moments) == done) {
                    let path = path.index(world.paths.len());
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
            let outcome = collector.execute(&inventory, &plan, &world.limits(), now, &stop, progress).await;
            let outcome = outcome.expect("the disk works");
            let done = outcome.paths + outcome.shared + outcome.unowned;
            if let Some(most) = stop_after {
                prop_assert!(done <= most);
            }
            let gone = missing(&model, scratch.path());
            model.check_whole(&gone)?;
            for path in used {
                for needed in (0..world.paths.len()).filter(|other| model.needs[path][*other]) {
                    let key = dir::narinfo(needed);
                    prop_assert!(!gone.contains(&key), "{path} was used, and {key} has gone");
                }
            }
            Ok(())
        })?;
    }
}
