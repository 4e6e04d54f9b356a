//! How long clients wait while the daemon collects.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::retention::cache::LargeCache;
use crate::retention::commands::{limit_of, size_of};
use crate::support::bench::{Bench, Place};
use crate::support::client::requests::Requests;
use crate::support::client::storm::{Until, storm};
use crate::support::daemon::Daemon;
use crate::support::process::Memory;
use crate::support::report::Section;
use crate::support::sample::{median, p99};
use crate::support::say;

/// The numbers of concurrent requests: so few that none has to wait for another, and more than two
/// cores can process at once.
const LOADS: [usize; 2] = [4, 32];

/// The minimum duration of a turn.
const TURN: Duration = Duration::from_secs(5);

/// The limit for a collection under load.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The limit for the 99th percentile, relative to that without a collection.
const GOAL: f64 = 1.10;

/// The latencies of one turn.
struct Seen {
    p99_us: f64,
    slowest_us: f64,
    per_second: f64,
    peak_mib: f64,
    after_mib: f64,
}

pub fn measure(bench: &Bench, cache: &LargeCache) -> anyhow::Result<Section> {
    let requests = Requests::get(&cache.latest);
    // Without and with a collection.
    let mut seen: [[Vec<Seen>; 2]; LOADS.len()] = Default::default();
    for round in 0..bench.rounds {
        say(&format!("latency: round {} of {}", round + 1, bench.rounds));
        for (seen, connections) in seen.iter_mut().zip(LOADS) {
            // The order alternates.
            for collects in [round % 2 == 1, round % 2 == 0] {
                let turn = turn(bench, cache, &requests, connections, collects)?;
                seen[usize::from(collects)].push(turn);
            }
        }
    }
    let mut section = Section::new(
        "narinfo requests while the daemon removes 10 %",
        &[
            "connections",
            "collects",
            "99th percentile µs",
            "slowest µs",
            "requests/s",
            "peak MiB",
            "afterwards MiB",
        ],
    );
    section.notes.push("Medians of the rounds".to_owned());
    let of = |seen: &[Seen], what: fn(&Seen) -> f64| median(seen.iter().map(what));
    for (seen, connections) in seen.iter().zip(LOADS) {
        for (seen, collects) in seen.iter().zip(["no", "yes"]) {
            section.row([
                connections.to_string(),
                collects.to_owned(),
                format!("{:.0}", of(seen, |seen| seen.p99_us)),
                format!("{:.0}", of(seen, |seen| seen.slowest_us)),
                format!("{:.0}", of(seen, |seen| seen.per_second)),
                format!("{:.0}", of(seen, |seen| seen.peak_mib)),
                format!("{:.0}", of(seen, |seen| seen.after_mib)),
            ]);
        }
        let [alone, beside] = seen;
        let ratio = of(beside, |seen| seen.p99_us) / of(alone, |seen| seen.p99_us);
        let met = if ratio <= GOAL { "met" } else { "**not met**" };
        section.notes.push(format!(
            "Over {connections} connections the 99th percentile is {ratio:.2} times what it is \
             without a collection; goal ≤ {GOAL:.2}: {met}"
        ));
    }
    Ok(section)
}

fn turn(
    bench: &Bench,
    cache: &LargeCache,
    requests: &Requests,
    connections: usize,
    collects: bool,
) -> anyhow::Result<Seen> {
    let limit = limit_of(size_of(bench, cache)?);
    bench.scratch.settle()?;
    let limits = [("NIX_STORED_MAX_SIZE", limit.as_str()), ("NIX_STORED_GC_INTERVAL", "1s")];
    let settings = if collects { &limits[..] } else { &[] };
    let daemon = Daemon::start(bench, cache.dir.clone(), settings, Place::Anywhere)?;
    // The collection starts a second after the daemon.
    storm(daemon.address(), connections, requests, Until::Elapsed(Duration::from_secs(1)))?;
    let begin = Instant::now();
    let mut latencies = Vec::new();
    loop {
        let until = Until::Elapsed(Duration::from_millis(500));
        latencies.extend(storm(daemon.address(), connections, requests, until)?.latencies);
        let done = !collects || daemon.log()?.contains("collected");
        if done && (collects || begin.elapsed() >= TURN) {
            break;
        }
        ensure!(begin.elapsed() < TIMEOUT, "no collection came to its end under load");
    }
    Ok(Seen {
        per_second: latencies.len() as f64 / begin.elapsed().as_secs_f64(),
        slowest_us: latencies.iter().copied().max().map_or(0.0, f64::from) / 1000.0,
        p99_us: f64::from(p99(&mut latencies)) / 1000.0,
        peak_mib: daemon.resident_mib(Memory::Peak)?,
        after_mib: daemon.resident_mib(Memory::Now)?,
    })
}
