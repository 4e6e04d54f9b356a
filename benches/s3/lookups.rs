//! narinfos, which clients request first, for every path of a closure.

use std::time::Instant;

use crate::s3::server::Server;
use crate::s3::table::{Turn, Way, table};
use crate::support::bench::{Bench, Place};
use crate::support::cache_dir::write_narinfos;
use crate::support::client::requests::Requests;
use crate::support::client::storm::{Until, storm};
use crate::support::daemon::Daemon;
use crate::support::report::Section;
use crate::support::say;

/// The number of connections of Nix.
const CONNECTIONS: usize = 25;

pub fn measure(bench: &Bench, server: &Server) -> anyhow::Result<Section> {
    let count = if bench.quick { 100 } else { 2000 };
    let dir = bench.fresh_dir("narinfos")?;
    let narinfos = write_narinfos(&dir, count)?;
    server.fill(&dir, &narinfos)?;
    let links = Requests::get(&server.links(&http::Method::GET, &narinfos)?);
    let requests = Requests::get(&narinfos);
    let mut ways = [
        Way::new("the server alone", None),
        Way::new("through the daemon, the first time", None),
        Way::new("through the daemon, again", Some(3.0)),
    ];
    for round in 0..bench.rounds {
        say(&format!("narinfos: round {} of {}", round + 1, bench.rounds));
        let daemon = start(bench, server)?;
        let turns = [
            (server.address(), &links),
            (daemon.address(), &requests),
            (daemon.address(), &requests),
        ];
        for (way, (address, requests)) in ways.iter_mut().zip(turns) {
            let before = [server.cpu_seconds()?, daemon.cpu_seconds()?];
            let begun = Instant::now();
            storm(address, CONNECTIONS, requests, Until::Answered)?;
            let value = count as f64 / begun.elapsed().as_secs_f64();
            let cpu = [server.cpu_seconds()? - before[0], daemon.cpu_seconds()? - before[1]];
            way.rounds.push(Turn { value, cpu });
        }
    }
    let title = format!("narinfos of a closure of {count} paths, {CONNECTIONS} connections");
    let mut section = table(&title, "answers a second", &ways);
    section.notes.push(
        "A signed GET of the server is what a client pays that reads the bucket itself".to_owned(),
    );
    Ok(section)
}

/// A daemon with its cache in the server's bucket.
pub fn start(bench: &Bench, server: &Server) -> anyhow::Result<Daemon> {
    start_with(bench, server, &[])
}

/// A daemon with additional settings.
pub fn start_with(
    bench: &Bench,
    server: &Server,
    more: &[(&'static str, &str)],
) -> anyhow::Result<Daemon> {
    let settings = server.settings();
    let mut settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend(more);
    Daemon::start(bench, bench.fresh_dir("daemon")?, &settings, Place::Anywhere)
}
