//! The time until a server accepts connections.

use crate::side_by_side::comparison::Comparison;
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::side_by_side::server::Server;
use crate::support::cache_dir::write_narinfos;
use crate::support::sample::Sample;

/// On a directory with many objects.
pub fn over_many(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let dir = comparison.fresh_dir("start")?;
    let count = write_narinfos(&dir, comparison.sizes.start_narinfos)?.len();
    let samples = comparison.take_turns(|kind| {
        let server = Server::start(comparison, kind, &dir)?;
        let wall = server.started_in.as_secs_f64();
        Ok(vec![Sample { value: wall * 1000.0, wall, cpu: server.cpu_seconds()? }])
    })?;
    let label = format!("start to listening, {count} narinfos");
    Ok(vec![Line::new(label, Unit::Milliseconds, Goal::AtMost(50.0), &samples, 0)])
}
