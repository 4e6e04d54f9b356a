//! `cargo bench --bench attacks`: how long other clients wait while one client attacks the daemon.
//!
//! Each attack uses a small number of connections, and no rights that a site would not give to
//! anyone on its network. A client that does nothing wrong reads and uploads meanwhile, each time over
//! a new connection; its latencies are compared with those without the attack. Rounds alternate, so
//! that what disturbs one disturbs both.

mod attack;
mod honest;
mod http;
mod object;
mod options;
mod upstream;

// What all benchmarks need lives in the others, which use all of it.
#[path = "../verification/bench.rs"]
#[allow(dead_code)]
mod bench;
#[path = "../side_by_side/cache_dir.rs"]
#[allow(dead_code)]
mod cache_dir;
#[path = "../verification/daemon.rs"]
#[allow(dead_code)]
mod daemon;
#[path = "../verification/facts.rs"]
mod facts;
#[path = "../side_by_side/nar.rs"]
#[allow(dead_code)]
mod nar;
#[path = "../side_by_side/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../verification/report.rs"]
mod report;
#[path = "../side_by_side/sample.rs"]
#[allow(dead_code)]
mod sample;
#[path = "../side_by_side/scratch.rs"]
#[allow(dead_code)]
mod scratch;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

use attack::{Attack, Target};
use bench::{Bench, Place};
use cache_dir::write_narinfos;
use daemon::Daemon;
use honest::{Latencies, Task};
use options::Options;
use process::others_cpu_seconds;
use report::{Section, Spot};
use sample::{median, p99};
use upstream::Upstream;

const SPOT: Spot = Spot { name: "attacks", heading: "## Latency during attacks" };

/// How long a turn lasts: without an attack, and with one.
const TURN: Duration = Duration::from_secs(10);
const QUICK_TURN: Duration = Duration::from_millis(500);

/// The narinfos in the cache.
const NARINFOS: usize = 1000;

/// How long the slowest request may take during an attack.
const GOAL_MS: f64 = 1000.0;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("attacks: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let bench = Bench::new(options)?;
    // What is checked out may be another commit when the run is over.
    let mut facts = facts::gather(&bench, &[])?;
    let begin = (Instant::now(), others_cpu_seconds()?);
    let upstream = Upstream::start()?;
    let mut sections = Vec::new();
    for attack in Attack::ALL {
        let section = measure(&bench, attack, &upstream)?;
        say(&format!("\n{section}"));
        sections.push(section);
    }
    let others = (others_cpu_seconds()? - begin.1) / begin.0.elapsed().as_secs_f64();
    facts.row(["kept busy by others".to_owned(), format!("{others:.2} cores")]);
    say(&format!("\n{facts}"));
    sections.push(facts);
    if let Some(page) = &options.write {
        let written = report::rewrite(page, SPOT, &sections);
        written.with_context(|| format!("writing {}", page.display()))?;
    }
    Ok(())
}

fn measure(bench: &Bench, attack: Attack, upstream: &Upstream) -> anyhow::Result<Section> {
    // Without the attack, and with it; of all rounds together.
    let mut seen: [Latencies; 2] = Default::default();
    let mut answers = 0;
    for round in 0..bench.rounds {
        say(&format!("{}: round {} of {}", attack.title(), round + 1, bench.rounds));
        // Another one begins every time.
        for attacked in [round % 2 == 1, round % 2 == 0] {
            let (latencies, answered) = turn(bench, attack, upstream, attacked)?;
            answers += answered;
            let all = seen[usize::from(attacked)].iter_mut();
            all.zip(latencies).for_each(|(all, more)| all.extend(more));
        }
    }
    let mut section = Section::new(
        &attack.title(),
        &[
            "request",
            "attack",
            "requests",
            "median ms",
            "99th percentile ms",
            "slowest ms",
            "goal",
            "",
        ],
    );
    let [quiet, attacked] = &mut seen;
    for (task, (quiet, attacked)) in Task::ALL.into_iter().zip(quiet.iter_mut().zip(attacked)) {
        for (latencies, attacked) in [(quiet, false), (attacked, true)] {
            let Some(slowest) = latencies.iter().copied().max() else { continue };
            let ms = |microseconds: f64| format!("{:.1}", microseconds / 1000.0);
            let met = if f64::from(slowest) / 1000.0 < GOAL_MS { "met" } else { "**not met**" };
            section.row([
                task.title().to_owned(),
                if attacked { "yes" } else { "no" }.to_owned(),
                latencies.len().to_string(),
                ms(median(latencies.iter().copied().map(f64::from))),
                ms(f64::from(p99(latencies))),
                ms(slowest.into()),
                if attacked { format!("< {GOAL_MS:.0} ms") } else { String::new() },
                if attacked { met } else { "" }.to_owned(),
            ]);
        }
    }
    if answers > 0 {
        section.notes.push(format!("The attackers got {answers} answers"));
    }
    Ok(section)
}

fn turn(
    bench: &Bench,
    attack: Attack,
    upstream: &Upstream,
    attacked: bool,
) -> anyhow::Result<(Latencies, u64)> {
    let dir = bench.fresh_dir("cache")?;
    let narinfos = write_narinfos(&dir, NARINFOS)?;
    attack.prepare(&dir)?;
    bench.scratch.settle()?;
    let settings = attack.settings(upstream);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = Daemon::start(bench, dir, &settings, Place::Anywhere)?;
    let target = Target { address: daemon.address(), upstream };
    let running = if attacked { Some(attack.begin(target)?) } else { None };
    let time = if bench.quick { QUICK_TURN } else { TURN };
    let upstream = attack.needs_upstream().then_some(upstream);
    let latencies = honest::work(daemon.address(), &narinfos, upstream, time)?;
    let answers = running.map_or(Ok(0), attack::Running::end)?;
    Ok((latencies, answers))
}

/// Prints a line for people.
fn say(text: &str) {
    // A reader that has gone away stops nothing.
    let _ = writeln!(std::io::stdout(), "{text}");
}
