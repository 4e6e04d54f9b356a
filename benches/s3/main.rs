//! `cargo bench --bench s3`: what the daemon over a bucket does beside the server alone.
//!
//! - `lookups`: the narinfos of a closure.
//! - `nix`: the same by Nix itself.
//! - `downloads`: a NAR from the server, through the daemon, and by redirect.
//! - `uploads`: a NAR to the server, and through the daemon.
//!
//! Server, daemon and client share the machine, so a way with one more of them has less of it.

mod nix;
mod options;
mod server;
mod stream;
mod table;
mod lookups;
mod transfers;

// What all benchmarks need lives in the others, which use all of it.
#[path = "../verification/bench.rs"]
#[allow(dead_code)]
mod bench;
#[path = "../side_by_side/cache_dir.rs"]
#[allow(dead_code)]
mod cache_dir;
#[path = "../side_by_side/client/mod.rs"]
#[allow(dead_code)]
mod client;
#[path = "../verification/daemon.rs"]
#[allow(dead_code)]
mod daemon;
#[path = "../verification/facts.rs"]
mod facts;
#[path = "../side_by_side/nar.rs"]
#[allow(dead_code)]
mod nar;
#[path = "../side_by_side/process.rs"]
#[allow(dead_code)]
mod process;
#[path = "../verification/report.rs"]
mod report;
#[path = "../side_by_side/sample.rs"]
#[allow(dead_code)]
mod sample;
#[path = "../side_by_side/scratch.rs"]
#[allow(dead_code)]
mod scratch;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

use bench::Bench;
use options::Options;
use process::others_cpu_seconds;
use report::{Section, Spot};
use server::Server;

const SPOT: Spot = Spot { name: "s3", heading: "## A cache in a bucket" };

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.serve {
        Some(folder) => server::serve(folder),
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("s3: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let bench = Bench::new(options)?;
    // What is checked out may be another commit when the run is over.
    let mut facts = facts::gather(&bench, &[])?;
    let begin = (Instant::now(), others_cpu_seconds()?);
    let server = Server::start(&bench, options.garage.as_deref())?;
    facts.row(["server".to_owned(), server.name.clone()]);
    let mut sections = vec![lookups::measure(&bench, &server)?];
    if let (Some(programs), Some(web)) = (&options.nix, server.web) {
        sections.push(nix::measure(&bench, &server, web, programs)?);
    }
    sections.push(transfers::downloads(&bench, &server)?);
    sections.push(transfers::uploads(&bench, &server)?);
    drop(server);
    let others = (others_cpu_seconds()? - begin.1) / begin.0.elapsed().as_secs_f64();
    facts.row(["kept busy by others".to_owned(), format!("{others:.2} cores")]);
    let sections: Vec<Section> = sections.into_iter().chain([facts]).collect();
    for section in &sections {
        say(&format!("\n{section}"));
    }
    if let Some(page) = &options.write {
        let written = report::rewrite(page, SPOT, &sections);
        written.with_context(|| format!("writing {}", page.display()))?;
    }
    Ok(())
}

/// Prints a line for people.
fn say(text: &str) {
    // A reader that has gone away stops nothing.
    let _ = writeln!(std::io::stdout(), "{text}");
}
