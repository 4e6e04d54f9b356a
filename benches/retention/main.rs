//! `cargo bench --bench retention`: what it costs to keep a large cache within its limits.
//!
//! - `commands`: time and memory of `gc --dry-run`, `stats` and `gc` on a cache of 200,000 paths
//!   with a million references, each in a process of its own.
//! - `latency`: how long narinfo requests take while the daemon collects, beside how long they take
//!   while it does not.

mod options;
mod cache;
mod commands;
mod latency;

// What all benchmarks need lives in the others, which use all of it.
#[path = "../verification/bench.rs"]
#[allow(dead_code)]
mod bench;
#[path = "../verification/daemon.rs"]
#[allow(dead_code)]
mod daemon;
#[path = "../verification/facts.rs"]
mod facts;
#[path = "../verification/report.rs"]
mod report;
#[path = "../side_by_side/cache_dir.rs"]
#[allow(dead_code)]
mod cache_dir;
#[path = "../side_by_side/client/mod.rs"]
#[allow(dead_code)]
mod client;
#[path = "../side_by_side/nar.rs"]
#[allow(dead_code)]
mod nar;
#[path = "../side_by_side/process.rs"]
#[allow(dead_code)]
mod process;
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
use cache::LargeCache;
use options::Options;
use process::others_cpu_seconds;
use report::{Section, Spot};

const SPOT: Spot = Spot { name: "retention", heading: "## Retention" };

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("retention: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let bench = Bench::new(options)?;
    // What is checked out may be another commit when the run is over.
    let mut facts = facts::gather(&bench, &[])?;
    let begin = (Instant::now(), others_cpu_seconds()?);
    let cache = LargeCache::make(&bench)?;
    let sections = [commands::measure(&bench, &cache)?, latency::measure(&bench, &cache)?];
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
