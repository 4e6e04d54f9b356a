//! A mirror of an upstream: fetched objects are served like stored ones. nginx does it with
//! `proxy_cache`, without verification.

use crate::side_by_side::comparison::{Comparison, Meter, Servers};
use crate::side_by_side::line::{Goal, Line, Unit};
use crate::side_by_side::server::{Kind, Server};
use crate::support::bench::GIB;
use crate::support::cache_dir::{write_large, write_narinfos};
use crate::support::client::requests::Requests;
use crate::support::client::storm::{Until, storm};
use crate::support::client::transfer::get_all;
use crate::support::nar::Large;
use crate::support::sample::Sample;

const CONNECTIONS: usize = 32;

/// Hits in a mirror of a plain nginx.
pub fn hits(comparison: &Comparison) -> anyhow::Result<Vec<Line>> {
    let dir = comparison.fresh_dir("upstream")?;
    let narinfos = write_narinfos(&dir, comparison.sizes.narinfos)?;
    let small = Large::new(0);
    let small = write_large(&dir, &small)?;
    let nar = write_large(&dir, &Large::new(comparison.sizes.large))?;
    let upstream = Server::start(comparison, Kind::Nginx, &dir)?;
    let direct = comparison.start_all(&dir)?;
    let mirrors = comparison.start_mirrors(upstream.address())?;
    let requests = Requests::get_of_any_length(&narinfos);
    for servers in [&direct, &mirrors] {
        for server in servers.iter() {
            // The NAR of all narinfos first, because a narinfo is stored when its NAR is.
            get_all(server.address(), std::slice::from_ref(&small), 1)?;
            get_all(server.address(), std::slice::from_ref(&nar), 1)?;
            // Twice, because a narinfo is stored after the first response.
            storm(server.address(), CONNECTIONS, &requests, Until::Answered)?;
            storm(server.address(), CONNECTIONS, &requests, Until::Answered)?;
        }
    }
    let samples = comparison.take_turns(|kind| {
        // Each of the two measurements is first and last once, so that neither has a warmer
        // machine.
        let mirrored = ask(comparison, &mirrors, kind, &requests)?;
        let own = ask(comparison, &direct, kind, &requests)?.value;
        let own_again = ask(comparison, &direct, kind, &requests)?.value;
        let again = ask(comparison, &mirrors, kind, &requests)?.value;
        let cost = |one: f64, other: f64| 1.0 / one + 1.0 / other;
        let value = cost(mirrored.value, again) / cost(own, own_again);
        let ratio = Sample { value, ..mirrored };
        let meter = Meter::start(mirrors.of(kind))?;
        let times = comparison.sizes.repeat;
        get_all(mirrors.of(kind).address(), &vec![nar.clone(); times as usize], 1)?;
        let (wall, cpu) = meter.read()?;
        let gib = (nar.size * times) as f64 / GIB as f64;
        Ok(vec![mirrored, ratio, Sample { value: cpu / gib, wall, cpu }])
    })?;
    let count = narinfos.len();
    let line = |index, label: String, unit, goal| Line::new(label, unit, goal, &samples, index);
    Ok(vec![
        line(
            0,
            format!("mirror: narinfo hit, {count} distinct, {CONNECTIONS} connections"),
            Unit::RequestsPerCpuSecond,
            Goal::TimesNginx(1.0),
        )
        .short("mirror: narinfo hit"),
        line(
            1,
            "mirror: CPU of a narinfo hit behind an upstream to one without".to_owned(),
            Unit::Ratio,
            Goal::AtMost(1.05),
        )
        .short("mirror: hit behind an upstream to one without"),
        line(
            2,
            "mirror: NAR hit, 1 GiB, 1 connection".to_owned(),
            Unit::CpuSecondsPerGib,
            Goal::TimesNginx(1.0),
        )
        .short("mirror: NAR hit"),
    ])
}

fn ask(
    comparison: &Comparison,
    servers: &Servers,
    kind: Kind,
    requests: &Requests,
) -> anyhow::Result<Sample> {
    let server = servers.of(kind);
    let meter = Meter::start(server)?;
    let outcome =
        storm(server.address(), CONNECTIONS, requests, Until::Elapsed(comparison.sizes.storm))?;
    let (wall, cpu) = meter.read()?;
    Ok(Sample { value: outcome.answers as f64 / cpu, wall, cpu })
}
