//! narinfos, which most requests to a cache are for, most of them absent.

use std::path::Path;

use crate::side_by_side::comparison::{Comparison, Meter};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::support::cache_dir::{hash_part, write_narinfos};
use crate::support::client::requests::Requests;
use crate::support::client::storm::{Until, storm};
use crate::support::sample::{Sample, p99};

const CONNECTIONS: usize = 32;

/// Present narinfos.
pub fn present(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let dir = comparison.fresh_dir("narinfo")?;
    let mut narinfos = write_narinfos(&dir, comparison.sizes.narinfos)?;
    // Requested in another order than they were written in.
    narinfos.sort_by(|a, b| a.path.cmp(&b.path));
    let samples = ask(comparison, &dir, &Requests::get(&narinfos))?;
    let count = narinfos.len();
    let label = |what: &str| format!("{what}, {count} distinct, {CONNECTIONS} connections");
    Ok(vec![
        Line::new(
            label("narinfo GET"),
            Unit::RequestsPerCpuSecond,
            Goal::TimesTuned(1.1),
            &samples,
            0,
        )
        .short("narinfo GET"),
        Line::new(
            label("narinfo GET, 99th percentile of the latency"),
            Unit::Microseconds,
            Goal::TimesNginx(1.0),
            &samples,
            1,
        )
        .short("narinfo GET, p99 latency"),
    ])
}

/// Absent narinfos of a cache that has others.
pub fn absent(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let dir = comparison.fresh_dir("absent")?;
    let count = comparison.sizes.narinfos;
    write_narinfos(&dir, count)?;
    let names = (0..count).map(|number| format!("{}.narinfo", hash_part("absent", number)));
    let samples = ask(comparison, &dir, &Requests::get_absent(names))?;
    let label = format!("absent narinfo (404), {CONNECTIONS} connections");
    let goal = Goal::TimesNginx(1.0);
    Ok(vec![
        Line::new(label, Unit::RequestsPerCpuSecond, goal, &samples, 0).short("absent narinfo"),
    ])
}

fn ask(
    comparison: &Comparison,
    dir: &Path,
    requests: &Requests,
) -> anyhow::Result<Vec<[Vec<Sample>; 3]>> {
    let servers = comparison.start_all(dir)?;
    for server in servers.iter() {
        // All of them once, to fill caches.
        storm(server.address(), CONNECTIONS, requests, Until::Answered)?;
    }
    comparison.take_turns(|kind| {
        let server = servers.of(kind);
        let meter = Meter::start(server)?;
        let time = Until::Elapsed(comparison.sizes.storm);
        let mut outcome = storm(server.address(), CONNECTIONS, requests, time)?;
        let (wall, cpu) = meter.read()?;
        let latency = f64::from(p99(&mut outcome.latencies)) / 1000.0;
        let value = outcome.answers as f64 / cpu;
        Ok(vec![Sample { value, wall, cpu }, Sample { value: latency, wall, cpu }])
    })
}
