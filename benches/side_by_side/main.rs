//! `cargo bench --bench side_by_side`: the daemon beside nginx, which is what a user would pick
//! instead for speed, over the same files on the same file system.
//!
//! What makes the numbers comparable:
//!
//! - The server has one core and the client another, so neither takes the other's time.
//! - The servers take turns, round by round, so what else the machine does hits all of them alike.
//! - CPU time (user and system, from `/proc/PID/stat`) stands beside wall time: on a machine that is
//!   shared, wall time is noise. CPU time that the kernel spends in threads of its own, such as the
//!   file system's journal, is in neither.
//! - The client is a few system calls a request and the same for every server, with the headers
//!   that Nix sends.
//! - The daemon runs at its defaults: it verifies, syncs and logs what it does for everybody.
//!
//! `--help` tells the rest; `docs/benchmarks.md` has the results.

mod options;
mod sizes;
mod needs;
mod scratch;
mod process;
mod nginx;
mod server;
mod nar;
mod cache_dir;
mod client;
mod nix;
mod sample;
mod line;
mod bench;
mod rows;
mod facts;
mod report;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

use bench::Bench;
use facts::Facts;
use line::Line;
use options::Options;
use process::others_cpu_seconds;
use rows::Row;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("side_by_side: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Measures; whether every row could be measured. Goals that are not met are no failure: the table
/// says so.
fn run(options: &Options) -> anyhow::Result<bool> {
    let rows: Vec<&Row> = rows::ALL.iter().filter(|row| options.wants(row.name)).collect();
    if options.list {
        rows.iter().for_each(|row| say(&format!("{:14} {}", row.name, row.about)));
        return Ok(true);
    }
    anyhow::ensure!(!rows.is_empty(), "no row has such a name; --list shows them");
    let bench = Bench::new(options, rows.iter().any(|row| row.needs_nix))?;
    let mut facts = Facts::gather(&bench)?;
    say(&facts.to_string());
    let begin = (Instant::now(), others_cpu_seconds()?);

    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for row in rows {
        say(&format!("\n{}: {}", row.name, row.about));
        match (row.run)(&bench) {
            Ok(measured) => {
                measured.iter().for_each(|line| say(&report::text::details(line)));
                lines.extend(measured);
            }
            Err(error) => {
                say(&format!("  FAILED: {error:#}"));
                failed.push(row.name);
            }
        }
    }
    let others = (others_cpu_seconds()? - begin.1) / begin.0.elapsed().as_secs_f64();
    // It does not come down to nothing: the kernel writes files to the disk in threads of its own.
    facts.0.push(("kept busy by others", format!("{others:.2} cores")));
    say(&format!("\n{}", report::text::table(&lines)));
    say(&format!("kept busy by others: {others:.2} cores"));
    if let Some(file) = &options.write {
        anyhow::ensure!(failed.is_empty(), "not written, because of {}", failed.join(", "));
        write(options, &facts, &lines).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(failed.is_empty())
}

fn write(options: &Options, facts: &Facts, lines: &[Line]) -> anyhow::Result<()> {
    let Some(file) = &options.write else { return Ok(()) };
    report::markdown::rewrite(file, options.log_requests, facts, lines)?;
    // One picture is enough: the one of the daemon as it comes.
    if !options.log_requests {
        std::fs::write(file.with_extension("svg"), report::picture::draw(lines))?;
    }
    Ok(())
}

/// Prints a line of the report.
fn say(text: &str) {
    // A reader that has gone away stops nothing.
    let _ = writeln!(std::io::stdout(), "{text}");
}
