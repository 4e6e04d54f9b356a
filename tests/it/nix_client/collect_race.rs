//! Collections, one after the other and by two daemons on the same directory, while clients upload and substitute
//! paths that are about to be removed. No client fails, and every closure that is kept is complete.
//!
//! The grace is seconds here instead of a day. A client relies on what it was told for as long as
//! the grace lasts, so one that needs longer, because the machine has other things to do, proves
//! nothing and is not counted.
//!
//! The long run is `NIX_STORED_TEST_RACE_SECONDS=180 cargo test --test it collect_race`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix_stored::cache::{Actor, Cache};
use nix_stored::retention::{Analysis, CollectError, Collector, GcReport, Limits};
use tokio_util::sync::CancellationToken;

use crate::support::audit::assert_nothing_is_false;
use crate::support::closures::{Layers, assert_closures_are_whole};
use crate::support::nix::Nix;
use crate::support::noise::Noise;
use crate::support::plain_client::{Paths, PlainClient};
use crate::support::rounds::number;
use crate::support::scratch::Scratch;
use crate::support::served::{Served, open_cache};

/// How long clients and collections go on before everything stands still and is looked at.
const ROUND: Duration = Duration::from_secs(4);

/// The roots are in use by turns, each third of them for as long as the grace. The others rest, and
/// go.
const TURNS: usize = 3;

/// A served cache that is collected from two sides.
struct Race {
    served: Served,
    /// As another process on the same directory would have it.
    other: Arc<Cache>,
    scratch: Scratch,
    grace: Duration,
    began: Instant,
    roots: Vec<Root>,
    pulse: Pulse,
    counts: Counts,
}

/// Something that clients upload and substitute.
#[derive(Default)]
struct Root {
    /// When the last client began to which all of it was there.
    used: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Counts {
    uploads: AtomicUsize,
    substitutions: AtomicUsize,
    /// Clients that took so long that they proved nothing.
    slow: AtomicUsize,
    collections: AtomicUsize,
    /// Store paths that went.
    gone: AtomicUsize,
    /// Store paths that were to go when somebody began to use them.
    kept_in_use: AtomicUsize,
}

/// What a round's threads know of each other: that clients go on, and that the round is over.
#[derive(Default)]
struct Pulse {
    beats: Mutex<u64>,
    changed: Condvar,
    over: AtomicBool,
}

impl Pulse {
    fn beat(&self) {
        *self.beats.lock().expect("nobody panics with it locked") += 1;
        self.changed.notify_all();
    }

    /// Waits until clients have done `count` things more, or for `at_most`.
    fn wait(&self, count: u64, at_most: Duration) {
        let beats = self.beats.lock().expect("nobody panics with it locked");
        let until = *beats + count;
        let waited = self.changed.wait_timeout_while(beats, at_most, |beats| *beats < until);
        drop(waited.expect("nobody panics with it locked"));
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Says that a round is over, however that comes: who panics ends it for all.
struct Over<'a>(&'a Pulse);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// How long a test races, if nothing else is said.
fn seconds(default: u64) -> Duration {
    Duration::from_secs(number("NIX_STORED_TEST_RACE_SECONDS").unwrap_or(default))
}

impl Race {
    fn new(grace: Duration, roots: usize) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.join("cache");
        Self {
            served: Served::start(&dir, grace),
            other: open_cache(&dir, grace),
            scratch,
            grace,
            began: Instant::now(),
            roots: std::iter::repeat_with(Root::default).take(roots).collect(),
            pulse: Pulse::default(),
            counts: Counts::default(),
        }
    }

    /// Runs rounds of `clients` threads for `time`. Each calls `client` again and again, which
    /// uploads and substitutes what it is given.
    fn run<C: Client>(&self, time: Duration, clients: u64, client: impl Fn() -> C + Sync) {
        let dir = self.scratch.join("cache");
        let mut noise = Noise::new(Noise::seed_of_today());
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
                    scope.spawn(move || self.go_on(client(), Noise::new(seed), until));
                }
            });
            assert_nothing_is_false(&dir);
            assert_closures_are_whole(&dir);
        }
        eprintln!("{:?}: {:?}", began.elapsed(), self.counts);
        let Counts { uploads, substitutions, gone, .. } = &self.counts;
        for (what, count) in [("uploaded", uploads), ("substituted", substitutions), ("gone", gone)]
        {
            assert!(count.load(Ordering::SeqCst) > 0, "nothing was {what}");
        }
    }

    /// Whatever may go, goes.
    fn limits(&self) -> Limits {
        Limits { max_size: Some(0), max_age: None, grace: self.grace }
    }

    /// As the daemon does, but without a pause.
    fn collect_all_the_time(&self) {
        let _over = Over(&self.pulse);
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

    /// As another process does in a cache that is large: what it has planned it does a while later.
    fn collect_what_was_planned_before(&self, mut noise: Noise) {
        let _over = Over(&self.pulse);
        let other = Collector::new(Arc::clone(&self.other), Actor::collector());
        while !self.pulse.is_over() {
            let _lock = loop {
                let lock = self.served.wait_for(other.lock());
                match lock.expect("the lock can be asked for") {
                    Some(lock) => break lock,
                    None => self.pulse.wait(1, Duration::from_millis(1)),
                }
            };
            let (limits, now) = (self.limits(), SystemTime::now());
            let inventory = self.served.wait_for(self.other.inventory(|_| {}));
            let inventory = inventory.expect("all can be read");
            let plan = Analysis::new(&inventory, &[]).plan(&limits, now);
            self.pulse.wait(noise.below(64), self.grace / 3);
            let stop = CancellationToken::new();
            let applied = other.execute(&inventory, &plan, &limits, now, &stop, |_| {});
            let outcome = self.served.wait_for(applied).expect("all can be removed");
            self.count(&GcReport::new(&inventory, &plan, &outcome));
        }
    }

    fn count(&self, report: &GcReport) {
        self.counts.collections.fetch_add(1, Ordering::SeqCst);
        self.counts.gone.fetch_add(report.paths, Ordering::SeqCst);
        self.counts.kept_in_use.fetch_add(report.kept_in_use, Ordering::SeqCst);
    }

    /// Uploads and substitutes until it is time to stop.
    fn go_on<C: Client>(&self, mut client: C, mut noise: Noise, until: Instant) {
        let _over = Over(&self.pulse);
        while Instant::now() < until && !self.pulse.is_over() {
            let root = self.choose(&mut noise);
            let began = Instant::now();
            let uploaded = client.upload(root, &mut noise);
            self.judge(root, began, uploaded, &self.counts.uploads);
            self.pulse.beat();

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
                self.pulse.beat();
            }
        }
    }

    /// One of the roots whose turn it is, or one that is about to go.
    fn choose(&self, noise: &mut Noise) -> usize {
        let turn = (self.began.elapsed().as_millis() / self.grace.as_millis()) as usize;
        if noise.below(2) == 0 {
            let about_to_go = |root: &usize| {
                let unused = self.unused(*root);
                unused.is_some_and(|unused| unused.abs_diff(self.grace) < self.grace / 5)
            };
            // Not every one, or none would go.
            let mut roots = (0..self.roots.len()).step_by(2);
            if let Some(root) = roots.find(about_to_go) {
                return root;
            }
        }
        let in_turn = noise.below((self.roots.len() / TURNS) as u64) as usize;
        in_turn * TURNS + turn % TURNS
    }

    /// For how long nobody has begun to upload or substitute a root; none if nobody ever has.
    fn unused(&self, root: usize) -> Option<Duration> {
        let used = *self.roots[root].used.lock().expect("nobody panics with it locked");
        used.map(|used| used.elapsed())
    }

    /// What became of a client that began then.
    #[track_caller]
    fn judge(&self, root: usize, began: Instant, done: Result<(), String>, count: &AtomicUsize) {
        match done {
            Ok(()) => {
                count.fetch_add(1, Ordering::SeqCst);
                let used = &self.roots[root].used;
                *used.lock().expect("nobody panics with it locked") = Some(began);
            }
            Err(told) if began.elapsed() < self.grace / 3 => {
                panic!("root {root}, after {:?}: {told}", began.elapsed())
            }
            Err(_) => {
                self.counts.slow.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Somebody who uploads and substitutes.
trait Client {
    /// Whether it may ask for what is not there.
    const ASKS_FOR_ANYTHING: bool;

    /// Sends a root and all that it needs; an error says what went wrong.
    fn upload(&mut self, root: usize, noise: &mut Noise) -> Result<(), String>;

    /// Takes a root and all that it needs. False if the root is not there; an error says what went
    /// wrong.
    fn substitute(&mut self, root: usize) -> Result<bool, String>;
}

/// The real one. It remembers nothing from one run to the next.
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
        // A Nix that does not look again for a path that it has found absent, which is how it comes.
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
