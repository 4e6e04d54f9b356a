//! The cost of verifying uploads.
//!
//! - `cost`: the CPU time of one upload, with only the file hashed (`NIX_STORED_VERIFY=file`) and
//!   with the NAR unpacked too (`=nar`), beside that of `sha256sum` and the decompressor for the
//!   same file.
//! - `commits`: durable uploads of small NARs per second, beside the same system calls without a
//!   daemon.
//! - `memory`: the peak memory of 32 concurrent large uploads.

mod body;
mod commits;
mod cost;
mod memory;
mod upload;

use crate::support::bench::Bench;
use crate::support::facts::output_of;
use crate::support::options::Options;
use crate::support::report::{Report, Section, Spot};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Parts to measure: commits, cost, memory; default: all
    #[arg(conflicts_with = "write")]
    parts: Vec<String>,

    #[command(flatten)]
    options: Options,
}

/// A part of the run, with the name that selects it.
type Part = (&'static str, fn(&Bench) -> anyhow::Result<Section>);

const SPOT: Spot = Spot { name: "verification", heading: "## What verification costs" };

/// Commits come first: after files were removed, ext4 is slow to create others for some minutes.
const PARTS: [Part; 3] =
    [("commits", commits::measure), ("memory", memory::measure), ("cost", cost::measure)];

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { parts, options } = arguments;
    for part in parts {
        let is_part = PARTS.iter().any(|(name, _)| name == part);
        anyhow::ensure!(
            is_part,
            "there is no part {part}: {}",
            PARTS.map(|(name, _)| name).join(", ")
        );
    }
    let bench = Bench::new(options)?;
    let mut report = Report::begin(&bench)?;
    report.facts.add("sha256sum", output_of("sha256sum", &["--version"]));
    for (name, measure) in PARTS {
        if parts.is_empty() || parts.iter().any(|part| part == name) {
            report.add(measure(&bench)?);
        }
    }
    report.end(options, SPOT)
}
