//! narinfos requested by Nix: from its own `s3://` store, and through the daemon.
//!
//! Most builds of Nix cannot sign requests, and Garage's S3 API accepts no unsigned ones. So Nix
//! reads from the address where Garage publishes a bucket as a web site, with the same paths. It
//! then needs no signatures.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::s3::lookups::start_with;
use crate::s3::server::{Server, WEB_NAME};
use crate::s3::table::{Turn, Way, table};
use crate::support::bench::Bench;
use crate::support::cache_dir::{Stored, write_narinfos};
use crate::support::daemon::Daemon;
use crate::support::report::Section;
use crate::support::say;

const CONFIG: &str = "build-users-group =\nrequire-sigs = false\n\
                      narinfo-cache-positive-ttl = 0\nnarinfo-cache-negative-ttl = 0\n";

/// The requests of Nix to `web` and to the daemon. `programs` has the commands of Nix.
pub fn measure(
    bench: &Bench,
    server: &Server,
    web: SocketAddr,
    programs: &Path,
) -> anyhow::Result<Section> {
    let count = if bench.quick { 100 } else { 2000 };
    let dir = bench.fresh_dir("by-nix")?;
    let paths = fill(server, &dir, count)?;
    let s3 = format!("s3://{WEB_NAME}?endpoint={WEB_NAME}:{}&scheme=http", web.port());
    let daemon = start_below(bench, server)?;
    let through = format!("http://{}", daemon.address());
    let mut ways = [
        Way::new("`s3://`, the server alone", None),
        Way::new("through the daemon", None),
        Way::new("through the daemon, again", Some(3.0)),
    ];
    for round in 0..bench.rounds {
        say(&format!("lookups by Nix: round {} of {}", round + 1, bench.rounds));
        for (way, url) in ways.iter_mut().zip([&s3, &through, &through]) {
            let before = [server.cpu_seconds()?, daemon.cpu_seconds()?];
            let begun = Instant::now();
            look_up(bench, programs, url, &paths)?;
            let value = count as f64 / begun.elapsed().as_secs_f64();
            let cpu = [server.cpu_seconds()? - before[0], daemon.cpu_seconds()? - before[1]];
            way.rounds.push(Turn { value, cpu });
        }
    }
    let title = format!("`nix-store --realise --dry-run` of {count} paths");
    let mut section = table(&title, "paths a second", &ways);
    section.notes.push(
        "The command's own start and its work for the answers are in it, and it gets them from the \
         server without signatures"
            .to_owned(),
    );
    Ok(section)
}

/// Stores narinfos without references below the name, and returns their store paths.
fn fill(server: &Server, dir: &Path, count: usize) -> anyhow::Result<Vec<String>> {
    let below = dir.join(WEB_NAME);
    fs::create_dir(&below)?;
    let mut keys = vec![Stored { path: format!("{WEB_NAME}/nix-cache-info"), size: 0 }];
    let mut paths = Vec::new();
    for Stored { path, size } in write_narinfos(&below, count)? {
        let text = fs::read_to_string(below.join(&path))?;
        let lines = text
            .lines()
            .map(|line| if line.starts_with("References: ") { "References: " } else { line });
        fs::write(below.join(&path), lines.map(|line| format!("{line}\n")).collect::<String>())?;
        let store_path = text.lines().find_map(|line| line.strip_prefix("StorePath: "));
        paths.push(store_path.context("the narinfo has a store path")?.to_owned());
        keys.push(Stored { path: format!("{WEB_NAME}/{path}"), size });
    }
    server.fill(dir, &keys)?;
    Ok(paths)
}

/// A daemon with its cache below the name.
fn start_below(bench: &Bench, server: &Server) -> anyhow::Result<Daemon> {
    let below = server.url(&format!("/{WEB_NAME}"));
    start_with(bench, server, &[("NIX_STORED_PATH", &below)])
}

fn look_up(bench: &Bench, programs: &Path, url: &str, paths: &[String]) -> anyhow::Result<()> {
    let home = bench.fresh_dir("nix")?;
    let output = Command::new(programs.join("nix-store"))
        .args(["--realise", "--dry-run", "--option", "substituters", url])
        .args(paths)
        .env("HOME", &home)
        .env("NIX_CONFIG", CONFIG)
        .env("NIX_REMOTE", format!("local?root={}", home.join("store").display()))
        .stdin(Stdio::null())
        .output()
        .with_context(|| programs.display().to_string())?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let all = format!("these {} paths will be fetched", paths.len());
    ensure!(output.status.success() && printed.contains(&all), "{url}: {printed}");
    Ok(())
}
