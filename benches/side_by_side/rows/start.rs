//! How soon a server is there.

use crate::bench::Bench;
use crate::cache_dir::write_narinfos;
use crate::line::{Goal, Line, Unit};
use crate::sample::Sample;
use crate::server::Server;

/// Over a directory that is well filled.
pub fn over_many(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let dir = bench.fresh_dir("start")?;
    let count = write_narinfos(&dir, bench.sizes.start_narinfos)?.len();
    let samples = bench.take_turns(|kind| {
        let server = Server::start(bench, kind, &dir)?;
        let wall = server.started_in.as_secs_f64();
        Ok(vec![Sample { value: wall * 1000.0, wall, cpu: server.cpu_seconds()? }])
    })?;
    let label = format!("start to listening, {count} narinfos");
    Ok(vec![Line::new(label, Unit::Milliseconds, Goal::AtMost(50.0), &samples, 0)])
}
