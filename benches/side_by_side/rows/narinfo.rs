//! narinfos: what most requests to a cache are for, and most of those in vain.

use std::path::Path;

use crate::bench::{Bench, Meter};
use crate::cache_dir::{hash_part, write_narinfos};
use crate::client::requests::Requests;
use crate::client::storm::{Until, storm};
use crate::line::{Goal, Line, Unit};
use crate::sample::{Sample, p99};

const CONNECTIONS: usize = 32;

/// narinfos that are there.
pub fn present(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let dir = bench.fresh_dir("narinfo")?;
    let mut narinfos = write_narinfos(&dir, bench.sizes.narinfos)?;
    // Asked for in another order than they were written in.
    narinfos.sort_by(|a, b| a.path.cmp(&b.path));
    let samples = ask(bench, &dir, &Requests::get(&narinfos))?;
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

/// narinfos that are not there, of a cache that has others.
pub fn absent(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let dir = bench.fresh_dir("absent")?;
    let count = bench.sizes.narinfos;
    write_narinfos(&dir, count)?;
    let names = (0..count).map(|number| format!("{}.narinfo", hash_part("absent", number)));
    let samples = ask(bench, &dir, &Requests::get_absent(names))?;
    let label = format!("absent narinfo (404), {CONNECTIONS} connections");
    let goal = Goal::TimesNginx(1.0);
    Ok(vec![
        Line::new(label, Unit::RequestsPerCpuSecond, goal, &samples, 0).short("absent narinfo"),
    ])
}

fn ask(bench: &Bench, dir: &Path, requests: &Requests) -> anyhow::Result<Vec<[Vec<Sample>; 3]>> {
    let servers = bench.start_all(dir)?;
    for server in servers.iter() {
        // Once through all of them, so that caches are warm.
        storm(server.address(), CONNECTIONS, requests, Until::Answered)?;
    }
    bench.take_turns(|kind| {
        let server = servers.of(kind);
        let meter = Meter::start(server)?;
        let time = Until::Elapsed(bench.sizes.storm);
        let mut outcome = storm(server.address(), CONNECTIONS, requests, time)?;
        let (wall, cpu) = meter.read()?;
        let latency = f64::from(p99(&mut outcome.latencies)) / 1000.0;
        let value = outcome.answers as f64 / cpu;
        Ok(vec![Sample { value, wall, cpu }, Sample { value: latency, wall, cpu }])
    })
}
