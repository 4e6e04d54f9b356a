//! NARs: downloaded from the server, through the daemon and by a redirect of the daemon, and
//! uploaded.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::s3::lookups::{start, start_with};
use crate::s3::server::Server;
use crate::s3::stream::{location, put};
use crate::s3::table::{Turn, Way, table};
use crate::support::bench::{Bench, MIB};
use crate::support::cache_dir::{Stored, write_large};
use crate::support::client::transfer::get_all;
use crate::support::daemon::Daemon;
use crate::support::nar::{Large, name};
use crate::support::report::Section;
use crate::support::say;

/// The size of the NAR, in MiB.
fn size(bench: &Bench) -> u64 {
    if bench.quick { 16 } else { 512 }
}

pub fn downloads(bench: &Bench, server: &Server) -> anyhow::Result<Section> {
    let (dir, mib) = (bench.fresh_dir("nar")?, size(bench));
    let nar = write_large(&dir, &Large::new(mib * MIB))?;
    let nar = std::slice::from_ref(&nar);
    server.fill(&dir, nar)?;
    let links = server.links(&http::Method::GET, nar)?;
    let mut ways = [
        Way::new("the server alone", None),
        Way::new("through the daemon", Some(0.9)),
        Way::new("where the daemon sends the client", Some(0.98)),
    ];
    let (daemon, sender) =
        (start(bench, server)?, start_with(bench, server, &[("NIX_STORED_S3_REDIRECT", "1")])?);
    for round in 0..bench.rounds {
        say(&format!("downloads: round {} of {}", round + 1, bench.rounds));
        let turns: [(&Daemon, &dyn Fn() -> anyhow::Result<()>); 3] = [
            (&daemon, &|| get_all(server.address(), &links, 1)),
            (&daemon, &|| get_all(daemon.address(), nar, 1)),
            (&sender, &|| follow(sender.address(), server.address(), &nar[0])),
        ];
        for (way, (daemon, work)) in ways.iter_mut().zip(turns) {
            way.rounds.push(turn(server, daemon, mib, work)?);
        }
    }
    Ok(table(&format!("GET of a NAR of {mib} MiB, one connection"), "MiB a second", &ways))
}

/// Requests a NAR from the daemon, and follows the redirect.
fn follow(daemon: SocketAddr, server: SocketAddr, nar: &Stored) -> anyhow::Result<()> {
    let link = location(daemon, &nar.path)?;
    let (host, path) = link
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .context("a redirect to a whole URL")?;
    ensure!(host == server.to_string(), "a redirect to {host}");
    crate::s3::stream::get(server, path, nar.size)
}

pub fn uploads(bench: &Bench, server: &Server) -> anyhow::Result<Section> {
    let mib = size(bench);
    let mut ways = [
        Way::new("the server alone", None),
        Way::new("through the daemon, not unpacked", None),
        Way::new("through the daemon", None),
    ];
    let (hashing, unpacking) =
        (start_with(bench, server, &[("NIX_STORED_VERIFY", "file")])?, start(bench, server)?);
    for round in 0..bench.rounds {
        say(&format!("uploads: round {} of {}", round + 1, bench.rounds));
        // A new NAR each time, because not every server replaces an existing object in the same
        // way.
        let nars = (0..3).map(|way| Large::new((mib + 4 * round as u64 + way) * MIB));
        let nars: Vec<Large> = nars.collect();
        let stored: Vec<Stored> =
            nars.iter().map(|nar| Stored { path: name(nar.hash), size: nar.length() }).collect();
        let links = server.links(&http::Method::PUT, &stored[..1])?;
        let daemon = |daemon: &Daemon, which: usize| {
            put(daemon.address(), &stored[which].path, &nars[which])
        };
        let turns: [(&Daemon, &dyn Fn() -> anyhow::Result<()>); 3] = [
            (&hashing, &|| put(server.address(), &links[0].path, &nars[0])),
            (&hashing, &|| daemon(&hashing, 1)),
            (&unpacking, &|| daemon(&unpacking, 2)),
        ];
        for (way, (daemon, work)) in ways.iter_mut().zip(turns) {
            way.rounds.push(turn(server, daemon, mib, work)?);
        }
    }
    Ok(table(&format!("PUT of a NAR of {mib} MiB, one connection"), "MiB a second", &ways))
}

fn turn(
    server: &Server,
    daemon: &Daemon,
    mib: u64,
    work: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Turn> {
    let before = [server.cpu_seconds()?, daemon.cpu_seconds()?];
    let begun = Instant::now();
    work()?;
    let value = mib as f64 / begun.elapsed().as_secs_f64();
    let cpu = [server.cpu_seconds()? - before[0], daemon.cpu_seconds()? - before[1]];
    Ok(Turn { value, cpu })
}
