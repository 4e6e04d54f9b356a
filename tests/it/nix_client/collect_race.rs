//! Collections, one after the other and by two daemons on the same directory, while clients upload
//! and substitute paths that are about to be removed. No client fails, and every kept closure is
//! complete.
//!
//! The grace period is seconds instead of a day. A client relies on a lookup for the grace period,
//! so a client that took longer, because the machine is busy, proves nothing and is not counted.
//!
//! The long run is `NIX_STORED_TEST_RACE_SECONDS=180 cargo test --test it collect_race`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix_stored::cache::{Actor, Cache};
use nix_stored::retention::{Analysis, CollectError, Collector, GcReport, Limits};
use tokio_util::sync::CancellationToken;

use crate::support::cache_dir::assert_consistent;
use crate::support::closures::{Layers, assert_closures_are_complete};
use crate::support::in_process::{InProcessServer, open_cache};
use crate::support::nix::Nix;
use crate::support::noise::Noise;
use crate::support::plain_client::{Paths, PlainClient};
use crate::support::rounds::number;
use crate::support::scratch::Scratch;

/// The duration of a round, after which everything stops and the cache is checked.
const ROUND: Duration = Duration::from_secs(4);

/// Each third of the roots is in use for one grace period at a time. The others are unused, and are
/// removed.
const TURNS: usize = 3;

/// A served cache with two collectors.
struct Race {
    served: InProcessServer,
    /// The cache as another process on the same directory has it.
    other: Arc<Cache>,
    scratch: Scratch,
    grace: Duration,
    began: Instant,
    roots: Vec<Root>,
    pulse: RoundState,
    counts: Counts,
}

/// A root that clients upload and substitute.
#[derive(Default)]
struct Root {
    /// The start of the last client that had the whole closure.
    used: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Counts {
    uploads: AtomicUsize,
    substitutions: AtomicUsize,
    /// Clients that took too long to prove anything.
    slow: AtomicUsize,
    collections: AtomicUsize,
    /// Store paths that were removed.
    gone: AtomicUsize,
    /// Store paths that were planned for removal, and used before it.
    kept_in_use: AtomicUsize,
}

/// The state of a round: the progress of clients, and whether the round is over.
#[derive(Default)]
struct RoundState {
    steps: Mutex<u64>,
    changed: Condvar,
    over: AtomicBool,
}

impl RoundState {
    fn step(&self) {
        *self.steps.lock().expect("the lock is not poisoned") += 1;
        self.changed.notify_all();
    }

    /// Waits until clients have made `count` more steps, or for `at_most`.
    fn wait(&self, count: u64, at_most: Duration) {
        let steps = self.steps.lock().expect("the lock is not poisoned");
        let until = *steps + count;
        let waited = self.changed.wait_timeout_while(steps, at_most, |steps| *steps < until);
        drop(waited.expect("the lock is not poisoned"));
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Ends a round on drop, so that a panic ends it for all threads.
struct EndOnDrop<'a>(&'a RoundState);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// The duration of a test, from the environment or this default.
fn seconds(default: u64) -> Duration {
    Duration::from_secs(number("NIX_STORED_TEST_RACE_SECONDS").unwrap_or(default))
}

impl Race {
    fn new(grace: Duration, roots: usize) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.join("cache");
        Self {
            served: InProcessServer::start(&dir, grace),
            other: open_cache(&dir, grace),
            scratch,
            grace,
            began: Instant::now(),
            roots: std::iter::repeat_with(Root::default).take(roots).collect(),
            pulse: RoundState::default(),
            counts: Counts::default(),
        }
    }

    /// Runs rounds of `clients` threads for `time`. Each thread gets a client from `client`, and
    /// uploads and substitutes repeatedly.
    fn run<C: Client>(&self, time: Duration, clients: u64, client: impl Fn() -> C + Sync) {
        let dir = self.scratch.join("cache");
        let mut noise = Noise::new(Noise::random_seed());
        let began = Instant::now();
        while began.elapsed() < time {
            self.pulse.over.store(false, Ordering::SeqCst);
            let until = Instant::now() + ROUND.min(time);
            thread::scope(|scope| {
                scope.spawn(|| self.collect_all_the_time());
                let seed = noise.next();
                scope.spawn(move || self.collect_what_was_planned_before(Noise::new(seed)));
                for _ in 0..clients {
                    let seed = noise.next();
                    let client = &client;
                    scope.spawn(move || self.run_client(client(), Noise::new(seed), until));
                }
            });
            assert_consistent(&dir);
            assert_closures_are_complete(&dir);
        }
        eprintln!("{:?}: {:?}", began.elapsed(), self.counts);
        let Counts { uploads, substitutions, gone, .. } = &self.counts;
        for (what, count) in [("uploaded", uploads), ("substituted", substitutions), ("gone", gone)]
        {
            assert!(count.load(Ordering::SeqCst) > 0, "nothing was {what}");
        }
    }

    /// Limits that remove every path that may be removed.
    fn limits(&self) -> Limits {
        Limits { max_size: Some(0), max_age: None, grace: self.grace }
    }

    /// Collects like the daemon, but without a pause.
    fn collect_all_the_time(&self) {
        let _over = EndOnDrop(&self.pulse);
        while !self.pulse.is_over() {
            let (limits, stop) = (self.limits(), CancellationToken::new());
            let collector = self.served.collector();
            let collected = collector.collect(&limits, SystemTime::now(), &stop, |_| {});
            match self.served.wait_for(collected) {
                Ok(report) => self.count(&report),
                Err(CollectError::Busy) => {}
                Err(error) => panic!("{error:?}"),
            }
            self.pulse.wait(1, Duration::from_millis(20));
        }
    }

    /// Collects like another process in a large cache: the plan is executed some time after it was
    /// made.
    fn collect_what_was_planned_before(&self, mut noise: Noise) {
        let _over = EndOnDrop(&self.pulse);
        let other = Collector::new(Arc::clone(&self.other), Actor::collector());
        while !self.pulse.is_over() {
            let _lock = loop {
                let lock = self.served.wait_for(other.lock());
                match lock.expect("the lock request succeeds") {
                    Some(lock) => break lock,
                    None => self.pulse.wait(1, Duration::from_millis(1)),
                }
            };
            let (limits, now) = (self.limits(), SystemTime::now());
            let inventory = self.served.wait_for(self.other.inventory(|_| {}));
            let inventory = inventory.expect("the listing succeeds");
            let plan = Analysis::new(&inventory, &[]).plan(&limits, now);
            self.pulse.wait(noise.below(64), self.grace / 3);
            let stop = CancellationToken::new();
            let applied = other.execute(&inventory, &plan, &limits, now, &stop, |_| {});
            let outcome = self.served.wait_for(applied).expect("the removal succeeds");
            self.count(&GcReport::new(&inventory, &plan, &outcome));
        }
    }

    fn count(&self, report: &GcReport) {
        self.counts.collections.fetch_add(1, Ordering::SeqCst);
        self.counts.gone.fetch_add(report.paths, Ordering::SeqCst);
        self.counts.kept_in_use.fetch_add(report.kept_in_use, Ordering::SeqCst);
    }

    /// Uploads and substitutes until the round ends.
    fn run_client<C: Client>(&self, mut client: C, mut noise: Noise, until: Instant) {
        let _over = EndOnDrop(&self.pulse);
        while Instant::now() < until && !self.pulse.is_over() {
            let root = self.choose(&mut noise);
            let began = Instant::now();
            let uploaded = client.upload(root, &mut noise);
            self.judge(root, began, uploaded, &self.counts.uploads);
            self.pulse.step();

            let root = if noise.below(2) == 0 { root } else { self.choose(&mut noise) };
            let began = Instant::now();
            let known = self.unused(root).is_some_and(|unused| unused < self.grace / 2);
            if known || C::ASKS_FOR_ANYTHING {
                let substituted = client.substitute(root);
                match substituted {
                    Ok(false) if !known => {}
                    Ok(false) => {
                        let gone = Err("it was there just now".to_owned());
                        self.judge(root, began, gone, &self.counts.substitutions);
                    }
                    other => {
                        let whole = other.map(|_| ());
                        self.judge(root, began, whole, &self.counts.substitutions);
                    }
                }
                self.pulse.step();
            }
        }
    }

    /// Chooses one of the roots in use, or one that is about to be removed.
    fn choose(&self, noise: &mut Noise) -> usize {
        let turn = (self.began.elapsed().as_millis() / self.grace.as_millis()) as usize;
        if noise.below(2) == 0 {
            let about_to_go = |root: &usize| {
                let unused = self.unused(*root);
                unused.is_some_and(|unused| unused.abs_diff(self.grace) < self.grace / 5)
            };
            // Only every second root is kept alive, so that some are removed.
            let mut roots = (0..self.roots.len()).step_by(2);
            if let Some(root) = roots.find(about_to_go) {
                return root;
            }
        }
        let in_turn = noise.below((self.roots.len() / TURNS) as u64) as usize;
        in_turn * TURNS + turn % TURNS
    }

    /// The time since a client last started with this root, or none if there was no client.
    fn unused(&self, root: usize) -> Option<Duration> {
        let used = *self.roots[root].used.lock().expect("the lock is not poisoned");
        used.map(|used| used.elapsed())
    }

    /// Counts the result of a client that started at this time.
    #[track_caller]
    fn judge(&self, root: usize, began: Instant, done: Result<(), String>, count: &AtomicUsize) {
        match done {
            Ok(()) => {
                count.fetch_add(1, Ordering::SeqCst);
                let used = &self.roots[root].used;
                *used.lock().expect("the lock is not poisoned") = Some(began);
            }
            Err(error) if began.elapsed() < self.grace / 3 => {
                panic!("root {root}, after {:?}: {error}", began.elapsed())
            }
            Err(_) => {
                self.counts.slow.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// A client that uploads and substitutes.
trait Client {
    /// Whether it may request absent paths.
    const ASKS_FOR_ANYTHING: bool;

    /// Uploads the closure of a root.
    fn upload(&mut self, root: usize, noise: &mut Noise) -> Result<(), String>;

    /// Substitutes the closure of a root. Returns false if the root is absent.
    fn substitute(&mut self, root: usize) -> Result<bool, String>;
}

/// A real Nix, without cached lookups.
struct RealNix<'a> {
    source: &'a Nix,
    roots: &'a [String],
    url: &'a str,
}

impl RealNix<'_> {
    fn copy(nix: &Nix, direction: &str, url: &str, root: &str) -> Result<(), String> {
        let output = nix.run(&["nix", "copy", direction, url, root]);
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

impl Client for RealNix<'_> {
    const ASKS_FOR_ANYTHING: bool = false;

    fn upload(&mut self, root: usize, noise: &mut Noise) -> Result<(), String> {
        // Nix with its default of caching negative lookups.
        let nix = self.source.fresh_home().with("narinfo-cache-negative-ttl", "3600");
        let compression = ["none", "zstd"][noise.below(2) as usize];
        let url = format!("{}?compression={compression}", self.url);
        Self::copy(&nix, "--to", &url, &self.roots[root])
    }

    fn substitute(&mut self, root: usize) -> Result<bool, String> {
        Self::copy(&Nix::new(), "--from", self.url, &self.roots[root]).map(|()| true)
    }
}

impl Client for PlainClient<'_> {
    const ASKS_FOR_ANYTHING: bool = true;

    fn upload(&mut self, root: usize, _: &mut Noise) -> Result<(), String> {
        Self::upload(self, root)
    }

    fn substitute(&mut self, root: usize) -> Result<bool, String> {
        Self::substitute(self, root)
    }
}

#[test]
fn nix_works_during_constant_collections() {
    let source = Nix::new();
    let layers = Layers::new("race", 60, 8_000);
    let texts = source.add_texts(&layers.texts);
    let roots: Vec<String> = layers.roots.iter().map(|&root| texts[root].clone()).collect();
    let race = Race::new(Duration::from_secs(4), roots.len());
    let url = race.served.url();
    race.run(seconds(12), 3, || RealNix { source: &source, roots: &roots, url });
}

#[test]
fn clients_faster_than_nix_work_during_constant_collections() {
    let paths = Paths::new(Layers::new("race", 120, 4_000));
    let race = Race::new(Duration::from_secs(1), paths.layers.roots.len());
    let address = race.served.address();
    race.run(seconds(8), 8, || PlainClient::new(address, &paths));
}
