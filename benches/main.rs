//! `cargo bench --bench benchmarks -- COMMAND`: the program's benchmarks. `docs/benchmarks.md` has their results.
//!
//! What makes the numbers comparable:
//!
//! - The compared programs take turns, round by round, so that other load on the machine affects all alike.
//! - CPU time (user and system, from `/proc/PID/stat`) is reported beside wall time, which is noise on a shared machine. CPU time
//!   of kernel threads, such as the journal of the file system, is in neither.
//! - The client needs a few system calls for each request, and sends the headers of Nix.
//! - The daemon runs with its defaults: it verifies, syncs and logs.

mod attacks;
mod retention;
mod s3;
mod side_by_side;
mod support;
mod verification;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use support::options::Options;
use support::say;

/// Measures nix-stored
#[derive(Debug, Parser)]
#[command(name = "benchmarks", bin_name = "cargo bench --bench benchmarks --")]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// Passed by cargo to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the latency of other clients while one client attacks the daemon
    Attacks(Options),
    /// Measure collections of a large cache
    Retention(Options),
    /// Measure a cache in a bucket beside the S3 server alone
    S3(s3::Arguments),
    /// Measure the daemon beside nginx
    SideBySide(side_by_side::Arguments),
    /// Measure the cost of verification
    Verification(verification::Arguments),
    /// Serve a folder with s3s-fs, for `s3`
    #[command(hide = true)]
    ServeBuckets { folder: PathBuf },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Attacks(options) => attacks::run(&options),
        Command::Retention(options) => retention::run(&options),
        Command::S3(arguments) => s3::run(&arguments),
        Command::SideBySide(arguments) => side_by_side::run(&arguments),
        Command::Verification(arguments) => verification::run(&arguments),
        Command::ServeBuckets { folder } => s3::serve(&folder),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("benchmarks: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
