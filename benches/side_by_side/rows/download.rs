//! NAR bytes, from the page cache.

use crate::side_by_side::comparison::{Comparison, Meter};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::support::bench::GIB;
use crate::support::cache_dir::write_large;
use crate::support::client::transfer::get_all;
use crate::support::nar::Large;
use crate::support::sample::Sample;

/// One large NAR, repeatedly.
pub fn large(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let dir = comparison.fresh_dir("nar")?;
    let nar = write_large(&dir, &Large::new(comparison.sizes.large))?;
    let servers = comparison.start_all(&dir)?;
    for server in servers.iter() {
        get_all(server.address(), std::slice::from_ref(&nar), 1)?;
    }
    let loads = [(1, comparison.sizes.repeat), (8, 8)];
    let samples = comparison.take_turns(|kind| {
        let server = servers.of(kind);
        loads
            .iter()
            .map(|&(connections, times)| {
                let objects = vec![nar.clone(); times as usize];
                let gib = (nar.size * times) as f64 / GIB as f64;
                let meter = Meter::start(server)?;
                get_all(server.address(), &objects, connections)?;
                let (wall, cpu) = meter.read()?;
                Ok(Sample { value: cpu / gib, wall, cpu })
            })
            .collect()
    })?;
    let line = |index, connections: &str| {
        let label = format!("NAR GET 1 GiB, {connections}");
        Line::new(label, Unit::CpuSecondsPerGib, Goal::TimesNginx(1.0), &samples, index)
    };
    Ok(vec![line(0, "1 connection"), line(1, "8 connections")])
}
