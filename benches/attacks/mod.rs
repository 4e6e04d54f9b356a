//! How long other clients wait while one client attacks the daemon.
//!
//! Each attack uses a small number of connections, and no permissions beyond those that a site
//! gives to everyone on its network. Meanwhile, another client reads and uploads, each time over a
//! new connection. Its latencies are compared with those without the attack. Rounds alternate, so
//! that other load affects both alike.

mod attack;
mod honest;
mod object;
mod upstream;

use std::time::Duration;

use attack::{Attack, Target};
use honest::{Latencies, Task};
use upstream::Upstream;

use crate::support::bench::{Bench, Place};
use crate::support::cache_dir::write_narinfos;
use crate::support::daemon::Daemon;
use crate::support::options::Options;
use crate::support::report::{Report, Section, Spot};
use crate::support::sample::{median, p99};
use crate::support::say;

const SPOT: Spot = Spot { name: "attacks", heading: "## Latency during attacks" };

/// The duration of a turn, with or without an attack.
const TURN: Duration = Duration::from_secs(10);
const QUICK_TURN: Duration = Duration::from_millis(500);

/// The number of narinfos in the cache.
const NARINFOS: usize = 1000;

/// The limit for the slowest request during an attack, in milliseconds.
const GOAL_MS: f64 = 1000.0;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let bench = Bench::new(options)?;
    let mut report = Report::begin(&bench)?;
    let upstream = Upstream::start()?;
    for attack in Attack::ALL {
        report.add(measure(&bench, attack, &upstream)?);
    }
    report.end(options, SPOT)
}

fn measure(bench: &Bench, attack: Attack, upstream: &Upstream) -> anyhow::Result<Section> {
    // Without and with the attack, of all rounds together.
    let mut seen: [Latencies; 2] = Default::default();
    let mut answers = 0;
    for round in 0..bench.rounds {
        say(&format!("{}: round {} of {}", attack.title(), round + 1, bench.rounds));
        // The order alternates.
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
