//! The method of the public comparison of Nix caches: the download of one closure.

use crate::side_by_side::comparison::{Comparison, Meter};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::support::bench::MIB;
use crate::support::cache_dir::write_closure;
use crate::support::client::transfer::get_all;
use crate::support::sample::Sample;

/// All narinfos in sequence, then all NARs, with an increasing number of connections.
pub fn closure(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let (paths, bytes) = (comparison.sizes.shootout_paths, comparison.sizes.shootout_bytes);
    let dir = comparison.fresh_dir("shootout")?;
    let closure = write_closure(&dir, paths, bytes)?;
    let columns =
        [(&closure.narinfos, 1), (&closure.nars, 1), (&closure.nars, 4), (&closure.nars, 16)];
    let servers = comparison.start_all(&dir)?;
    for server in servers.iter() {
        get_all(server.address(), &closure.narinfos, 1)?;
        get_all(server.address(), &closure.nars, 1)?;
    }
    // A column takes a fraction of a second, so it is measured several times in a turn, and the
    // median counts.
    let samples = comparison.take_turns(|kind| {
        let server = servers.of(kind);
        columns
            .iter()
            .map(|(objects, connections)| {
                let mut times = Vec::new();
                for _ in 0..3 {
                    let meter = Meter::start(server)?;
                    get_all(server.address(), objects, *connections)?;
                    let (wall, cpu) = meter.read()?;
                    times.push(Sample { value: wall, wall, cpu });
                }
                times.sort_by(|a, b| a.wall.total_cmp(&b.wall));
                Ok(times[times.len() / 2])
            })
            .collect()
    })?;
    let line = |index, what: String| {
        Line::new(
            format!("shoot-out: {what}"),
            Unit::Seconds,
            Goal::TimesNginx(1.0),
            &samples,
            index,
        )
    };
    let nars = |connections| {
        let plural = if connections == 1 { "" } else { "s" };
        format!("{} MiB of NARs, {connections} connection{plural}", bytes / MIB)
    };
    Ok(vec![
        line(0, format!("{paths} narinfos in sequence")),
        line(1, nars(1)),
        line(2, nars(4)),
        line(3, nars(16)),
    ])
}
