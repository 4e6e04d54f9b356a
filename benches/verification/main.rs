//! `cargo bench --bench verification`: what it costs that the daemon looks at what it takes.
//!
//! - `cost`: CPU time of one upload, with only the file hashed (`NIX_STORED_VERIFY=file`) and with
//!   the NAR unpacked too (`=nar`), beside what `sha256sum` and the decompressor need for the same
//!   file.
//! - `commits`: durable uploads of small NARs a second, beside the same system calls without a
//!   daemon.
//! - `memory`: the most that 32 parallel large uploads make resident.
//!
//! CPU time is user and system time. On a machine that is shared it is what can be trusted; the
//! competitors take turns, round by round, so that what disturbs one disturbs all.

mod options;
mod bench;
mod body;
mod daemon;
mod upload;
mod commits;
mod cost;
mod memory;
mod facts;
mod report;

// What both benchmarks need lives in the other one, which uses all of it.
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
use options::Options;
use process::others_cpu_seconds;
use report::{Section, Spot};

/// A part of the run, by the name that selects it.
type Part = (&'static str, fn(&Bench) -> anyhow::Result<Section>);

const SPOT: Spot = Spot { name: "verification", heading: "## What verification costs" };

/// Commits come first: ext4 makes files slowly for minutes after others were removed.
const PARTS: [Part; 3] =
    [("commits", commits::measure), ("memory", memory::measure), ("cost", cost::measure)];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("verification: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let parts: Vec<Part> = PARTS.into_iter().filter(|(name, _)| options.wants(name)).collect();
    anyhow::ensure!(!parts.is_empty(), "the parts are {}", PARTS.map(|(name, _)| name).join(", "));
    let bench = Bench::new(options)?;
    // What is checked out may be another commit when the run is over.
    let mut facts = facts::gather(&bench, &["sha256sum"])?;
    let begin = (Instant::now(), others_cpu_seconds()?);
    let mut sections = Vec::new();
    for (_, measure) in parts {
        let section = measure(&bench)?;
        say(&format!("\n{section}"));
        sections.push(section);
    }
    let others = (others_cpu_seconds()? - begin.1) / begin.0.elapsed().as_secs_f64();
    facts.row(["kept busy by others".to_owned(), format!("{others:.2} cores")]);
    say(&format!("\n{facts}"));
    sections.push(facts);
    if let Some(page) = &options.write {
        report::rewrite(page, SPOT, &sections)
            .with_context(|| format!("writing {}", page.display()))?;
    }
    Ok(())
}

/// Prints a line for people.
fn say(text: &str) {
    // A reader that has gone away stops nothing.
    let _ = writeln!(std::io::stdout(), "{text}");
}
