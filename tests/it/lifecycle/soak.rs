//! A week of traffic in five minutes: uploads, substitutions, collections and restarts, by Nix and
//! by faster clients, while the memory and open files of the daemon are measured.
//!
//! The grace period of a day cannot pass in this time. So the times of unused paths are set to
//! three days ago, and they are removed. No client requests them at that time: clients go from one
//! generation of paths to the next, and return to the first after it was removed.
//!
//! The long run is `NIX_STORED_TEST_SOAK_SECONDS=300 cargo test --test it soak -- --nocapture`. It
//! prints the table in `docs/benchmarks.md`.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::cache_dir::assert_consistent;
use crate::support::closures::{Layers, assert_closures_are_complete, last_used, narinfo_of};
use crate::support::daemon::Daemon;
use crate::support::metrics::MetricValues;
use crate::support::nix::Nix;
use crate::support::plain_client::{Paths, PlainClient};
use crate::support::rounds::number;
use crate::support::scratch::Scratch;

/// The duration of a round, after which clients restart. Long enough to collect a generation before
/// it is used again.
const ROUND: Duration = Duration::from_secs(3);

/// The number of concurrent plain clients.
const CLIENTS: usize = 3;

/// One generation is in use, one becomes old, one is collected.
const GENERATIONS: usize = 3;

/// The interval between two measurements.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

const UNUSED: Duration = Duration::from_secs(3 * 86_400);

/// The paths that one client uploads and substitutes in one generation.
struct ClientPaths {
    plain: Paths,
    /// The same paths as roots for Nix.
    texts: Vec<String>,
    roots: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    uploads: AtomicUsize,
    substitutions: AtomicUsize,
}

/// A measurement of the process.
#[derive(Debug, Clone, Copy)]
struct Sample {
    memory: usize,
    files: usize,
}

/// The measurements of one daemon, from its start to its end.
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
    let rounds = usize::try_from(seconds / ROUND.as_secs()).expect("the number fits").max(4);
    let life_count = (rounds / 16).clamp(2, 6);
    let (scratch, nix) = (Scratch::new(), Nix::new());
    let client_paths: Vec<Vec<ClientPaths>> = (0..GENERATIONS)
        .map(|generation| {
            (0..=CLIENTS).map(|client| client_paths(&nix, generation, client)).collect()
        })
        .collect();
    let cache = scratch.join("cache");
    let mut lives = Vec::new();
    let mut next = 0;
    for life in 0..life_count {
        let until = rounds * (life + 1) / life_count;
        lives.push(live(&cache, &nix, &client_paths, next..until));
        next = until;
        assert_consistent(&cache);
        assert_closures_are_complete(&cache);
    }
    eprint!("{}", table(&lives));
    for life in &lives {
        judge(&life.samples);
        assert!(life.uploads > 0 && life.substitutions > 0 && life.collections > 0.0);
    }
    // Growth across restarts would come from files that are read at each start.
    let peaks: Vec<usize> =
        lives.iter().map(|life| peak(&life.samples, |one| one.memory)).collect();
    let (first, last) = (peaks[0], peaks[peaks.len() - 1]);
    assert!(
        last <= first * 5 / 4 + (8 << 20),
        "each life takes more than the one before: {peaks:?}"
    );
    assert!(lives.iter().map(|life| life.gone).sum::<f64>() > 0.0, "nothing was collected");
}

fn client_paths(nix: &Nix, generation: usize, client: usize) -> ClientPaths {
    let tag = format!("soak-{generation}-{client}");
    // Large enough to be streamed, small enough to be many.
    let layers = Layers::new(&tag, 4, 100_000);
    let (mut texts, mut roots) = (Vec::new(), Vec::new());
    // The last client is Nix.
    if client == CLIENTS {
        texts = nix.add_texts(&layers.texts);
        roots = layers.roots.iter().map(|&root| texts[root].clone()).collect();
    }
    ClientPaths {
        plain: Paths::numbered(layers, generation * (CLIENTS + 1) + client),
        texts,
        roots,
    }
}

/// Runs a daemon for some rounds.
fn live(
    cache: &Path,
    nix: &Nix,
    client_paths: &[Vec<ClientPaths>],
    rounds: std::ops::Range<usize>,
) -> Life {
    let began = Instant::now();
    let daemon = Daemon::builder()
        .dir(cache)
        .env("NIX_STORED_MAX_AGE", "2d")
        .env("NIX_STORED_GC_INTERVAL", "1s")
        .start();
    let (counts, samples, over) = (Counts::default(), Mutex::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| watch(&daemon, &samples, &over));
        let _over = SetOnDrop(&over);
        for round in rounds {
            let generation = round % GENERATIONS;
            if round > 0 {
                let before = (round - 1) % GENERATIONS;
                client_paths[before].iter().for_each(|client_paths| client_paths.set_old(cache));
            }
            run_round(&daemon, nix, &client_paths[generation], &counts);
        }
    });
    let numbers = MetricValues::scrape(&daemon);
    let all = |prefix: &str| numbers.sum(prefix);
    let life = Life {
        lasted: began.elapsed(),
        uploads: counts.uploads.into_inner(),
        substitutions: counts.substitutions.into_inner(),
        collections: all("nix_stored_collections_total{result=\"done\"}"),
        gone: all("nix_stored_collected_paths_total"),
        requests: all("nix_stored_http_requests_total"),
        samples: samples.into_inner().expect("the lock is not poisoned"),
    };
    assert_eq!(all("nix_stored_uploads_refused_total"), 0.0);
    assert_eq!(all("nix_stored_collections_total{result=\"failed\"}"), 0.0);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{status}:\n{log}");
    assert!(!log.contains("ERROR"), "{log}");
    life
}

/// Sets the flag on drop, also in a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn watch(daemon: &Daemon, samples: &Mutex<Vec<Sample>>, over: &AtomicBool) {
    let mut next = Instant::now();
    while !over.load(Ordering::SeqCst) {
        let sample = Sample { memory: daemon.memory(), files: daemon.open_files() };
        samples.lock().expect("the lock is not poisoned").push(sample);
        next += SAMPLE_EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Each client uploads and substitutes its own paths repeatedly. A failure panics.
fn run_round(daemon: &Daemon, nix: &Nix, client_paths: &[ClientPaths], counts: &Counts) {
    let until = Instant::now() + ROUND;
    let address = daemon.url().trim_start_matches("http://");
    let (real, plain) = client_paths.split_last().expect("not empty");
    thread::scope(|scope| {
        for client_paths in plain {
            scope.spawn(move || {
                let roots = client_paths.plain.layers.roots.len();
                while Instant::now() < until {
                    // Connections are not kept forever.
                    let mut client = PlainClient::new(address, &client_paths.plain);
                    for root in 0..roots {
                        client.upload(root).unwrap_or_else(|error| panic!("{error}"));
                        counts.uploads.fetch_add(1, Ordering::SeqCst);
                        let there =
                            client.substitute(root).unwrap_or_else(|error| panic!("{error}"));
                        assert!(there, "a root in use was removed");
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

impl ClientPaths {
    /// Sets the times of all paths to some days ago.
    fn set_old(&self, cache: &Path) {
        let narinfos = match self.texts.is_empty() {
            true => self.plain.narinfos(),
            false => self.texts.iter().map(|path| narinfo_of(path)).collect(),
        };
        // Not all of the paths are in the closure of a root.
        let there = |narinfo: &String| Some((narinfo.clone(), nar_of(cache, narinfo)?));
        let there: Vec<(String, String)> = narinfos.iter().filter_map(there).collect();
        // The NARs first, which several paths may share: then no path is removed before all times
        // are set.
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

/// The second half of the daemon's life must not use more than the first, which includes the
/// warm-up.
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
