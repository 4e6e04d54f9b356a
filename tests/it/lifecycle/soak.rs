//! A week of traffic in five minutes: uploads, substitutions, collections and restarts, by Nix and by faster
//! clients, while memory and open files of the daemon are measured.
//!
//! A day of grace cannot pass here, so what has not been used for a while is made to look as if that
//! was three days ago, and goes. Nobody asks for it meanwhile: clients go from one generation of
//! paths to the next, and come back to the first when it has gone.
//!
//! The long run is `NIX_STORED_TEST_SOAK_SECONDS=300 cargo test --test it soak -- --nocapture`. It
//! prints the table in `docs/benchmarks.md`.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::audit::assert_nothing_is_false;
use crate::support::closures::{Layers, assert_closures_are_whole, last_used, narinfo_of};
use crate::support::daemon::Daemon;
use crate::support::metrics::Numbers;
use crate::support::nix::Nix;
use crate::support::plain_client::{Paths, PlainClient};
use crate::support::rounds::number;
use crate::support::scratch::Scratch;

/// How often clients start anew. Long enough for a generation to be collected until its next turn.
const ROUND: Duration = Duration::from_secs(3);

/// How many plain clients there are at a time.
const CLIENTS: usize = 3;

/// One is used, one gets old, one is collected.
const GENERATIONS: usize = 3;

/// The time between two looks at the process.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

const UNUSED: Duration = Duration::from_secs(3 * 86_400);

/// What one client uploads and substitutes in one generation.
struct Goods {
    plain: Paths,
    /// The same as roots for Nix.
    texts: Vec<String>,
    roots: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    uploads: AtomicUsize,
    substitutions: AtomicUsize,
}

/// What the process took, at one time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    memory: usize,
    files: usize,
}

/// What became of one daemon, from its start to its end.
struct Life {
    lasted: Duration,
    uploads: usize,
    substitutions: usize,
    collections: f64,
    gone: f64,
    requests: f64,
    samples: Vec<Sample>,
}

#[test]
fn a_week_of_traffic_leaks_no_memory_and_no_descriptors() {
    let seconds = number("NIX_STORED_TEST_SOAK_SECONDS").unwrap_or(12);
    let rounds = usize::try_from(seconds / ROUND.as_secs()).expect("it fits").max(4);
    let lives = (rounds / 16).clamp(2, 6);
    let (scratch, nix) = (Scratch::new(), Nix::new());
    let goods: Vec<Vec<Goods>> = (0..GENERATIONS)
        .map(|generation| (0..=CLIENTS).map(|client| goods(&nix, generation, client)).collect())
        .collect();
    let cache = scratch.join("cache");
    let mut told = Vec::new();
    let mut next = 0;
    for life in 0..lives {
        let until = rounds * (life + 1) / lives;
        told.push(live(&cache, &nix, &goods, next..until));
        next = until;
        assert_nothing_is_false(&cache);
        assert_closures_are_whole(&cache);
    }
    eprint!("{}", table(&told));
    for life in &told {
        judge(&life.samples);
        assert!(life.uploads > 0 && life.substitutions > 0 && life.collections > 0.0);
    }
    // What a restart does not bring back would be on the disk, and be read at each start.
    let peaks: Vec<usize> = told.iter().map(|life| peak(&life.samples, |one| one.memory)).collect();
    let (first, last) = (peaks[0], peaks[peaks.len() - 1]);
    assert!(
        last <= first * 5 / 4 + (8 << 20),
        "each life takes more than the one before: {peaks:?}"
    );
    assert!(told.iter().map(|life| life.gone).sum::<f64>() > 0.0, "nothing was collected");
}

fn goods(nix: &Nix, generation: usize, client: usize) -> Goods {
    let tag = format!("soak-{generation}-{client}");
    // Long enough to be streamed, short enough to be many.
    let layers = Layers::new(&tag, 4, 100_000);
    let (mut texts, mut roots) = (Vec::new(), Vec::new());
    // The last is real Nix.
    if client == CLIENTS {
        texts = nix.add_texts(&layers.texts);
        roots = layers.roots.iter().map(|&root| texts[root].clone()).collect();
    }
    Goods { plain: Paths::numbered(layers, generation * (CLIENTS + 1) + client), texts, roots }
}

/// Runs a daemon for some rounds.
fn live(cache: &Path, nix: &Nix, goods: &[Vec<Goods>], rounds: std::ops::Range<usize>) -> Life {
    let began = Instant::now();
    let daemon = Daemon::builder()
        .dir(cache)
        .env("NIX_STORED_MAX_AGE", "2d")
        .env("NIX_STORED_GC_INTERVAL", "1s")
        .start();
    let (counts, samples, over) = (Counts::default(), Mutex::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| watch(&daemon, &samples, &over));
        let _over = Over(&over);
        for round in rounds {
            let generation = round % GENERATIONS;
            if round > 0 {
                let before = (round - 1) % GENERATIONS;
                goods[before].iter().for_each(|goods| goods.get_old(cache));
            }
            run_round(&daemon, nix, &goods[generation], &counts);
        }
    });
    let numbers = Numbers::of(&daemon);
    let all = |prefix: &str| numbers.sum(prefix);
    let life = Life {
        lasted: began.elapsed(),
        uploads: counts.uploads.into_inner(),
        substitutions: counts.substitutions.into_inner(),
        collections: all("nix_stored_collections_total{result=\"done\"}"),
        gone: all("nix_stored_collected_paths_total"),
        requests: all("nix_stored_http_requests_total"),
        samples: samples.into_inner().expect("nobody panics with it locked"),
    };
    assert_eq!(all("nix_stored_uploads_refused_total"), 0.0);
    assert_eq!(all("nix_stored_collections_total{result=\"failed\"}"), 0.0);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{status}:\n{log}");
    assert!(!log.contains("ERROR"), "{log}");
    life
}

/// Says that a life is over, however that comes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn watch(daemon: &Daemon, samples: &Mutex<Vec<Sample>>, over: &AtomicBool) {
    let mut next = Instant::now();
    while !over.load(Ordering::SeqCst) {
        let sample = Sample { memory: daemon.memory(), files: daemon.open_files() };
        samples.lock().expect("nobody panics with it locked").push(sample);
        next += SAMPLE_EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Each client uploads and substitutes what is its own, again and again. Whoever fails panics.
fn run_round(daemon: &Daemon, nix: &Nix, goods: &[Goods], counts: &Counts) {
    let until = Instant::now() + ROUND;
    let address = daemon.url().trim_start_matches("http://");
    let (real, plain) = goods.split_last().expect("there are some");
    thread::scope(|scope| {
        for goods in plain {
            scope.spawn(move || {
                let roots = goods.plain.layers.roots.len();
                while Instant::now() < until {
                    // A connection is not for ever.
                    let mut client = PlainClient::new(address, &goods.plain);
                    for root in 0..roots {
                        client.upload(root).unwrap_or_else(|told| panic!("{told}"));
                        counts.uploads.fetch_add(1, Ordering::SeqCst);
                        let there = client.substitute(root).unwrap_or_else(|told| panic!("{told}"));
                        assert!(there, "a root has gone that was there just now");
                        counts.substitutions.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        scope.spawn(move || {
            while Instant::now() < until {
                nix.fresh_home().copy_to(daemon.url(), &real.roots);
                counts.uploads.fetch_add(1, Ordering::SeqCst);
                Nix::new().copy_from(daemon.url(), &real.roots);
                counts.substitutions.fetch_add(1, Ordering::SeqCst);
            }
        });
    });
}

impl Goods {
    /// Nobody has used them for days.
    fn get_old(&self, cache: &Path) {
        let narinfos = match self.texts.is_empty() {
            true => self.plain.narinfos(),
            false => self.texts.iter().map(|path| narinfo_of(path)).collect(),
        };
        // Not all of them are needed by a root.
        let there = |narinfo: &String| Some((narinfo.clone(), nar_of(cache, narinfo)?));
        let there: Vec<(String, String)> = narinfos.iter().filter_map(there).collect();
        // The NARs first, which several of them may have: then none goes before all are done.
        there.iter().for_each(|(_, nar)| last_used(cache, nar, UNUSED));
        there.iter().for_each(|(narinfo, _)| last_used(cache, narinfo, UNUSED));
    }
}

fn nar_of(cache: &Path, narinfo: &str) -> Option<String> {
    let text = std::fs::read_to_string(cache.join(narinfo)).ok()?;
    let url = text.lines().find_map(|line| line.strip_prefix("URL: "));
    Some(url.expect("a narinfo has one").to_owned())
}

fn peak(samples: &[Sample], of: impl Fn(&Sample) -> usize) -> usize {
    samples.iter().map(of).max().unwrap_or_default()
}

fn middle(samples: &[Sample], of: impl Fn(&Sample) -> usize) -> usize {
    let mut numbers: Vec<usize> = samples.iter().map(of).collect();
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// The second half of a life must not take more than the first, in which it has to warm up.
fn judge(samples: &[Sample]) {
    let (first, second) = samples.split_at(samples.len() / 2);
    let memory = [first, second].map(|half| peak(half, |one| one.memory));
    let margin = 8 << 20;
    assert!(memory[1] <= memory[0] * 11 / 10 + margin, "memory grows: {memory:?}");
    let files = [first, second].map(|half| peak(half, |one| one.files));
    assert!(files[1] <= files[0] + 32, "open files grow: {files:?}");
    let middles = [first, second].map(|half| middle(half, |one| one.memory));
    assert!(middles[1] <= middles[0] * 5 / 4 + margin, "memory grows: {middles:?}");
}

fn table(lives: &[Life]) -> String {
    let mut table = String::from(
        "| life | s | uploads | substitutions | requests | collections | paths gone | \
         MiB, first half | second half | files, first half | second half |\n|---|",
    );
    table.push_str(&"---|".repeat(10));
    for (number, life) in lives.iter().enumerate() {
        let (first, second) = life.samples.split_at(life.samples.len() / 2);
        let halves = |of: fn(&Sample) -> usize| [first, second].map(|half| peak(half, of));
        let [memory, files] = [halves(|one| one.memory >> 20), halves(|one| one.files)];
        table.push_str(&format!(
            "\n| {} | {:.0} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            number + 1,
            life.lasted.as_secs_f64(),
            life.uploads,
            life.substitutions,
            life.requests,
            life.collections,
            life.gone,
            memory[0],
            memory[1],
            files[0],
            files[1],
        ));
    }
    table.push('\n');
    table
}
