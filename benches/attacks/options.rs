//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures how long other clients wait while one client attacks the daemon.
#[derive(Debug, Parser)]
#[command(name = "attacks", bin_name = "cargo bench --bench attacks --")]
pub struct Options {
    /// Number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,

    /// One short round: shows that everything works, and measures nothing
    #[arg(long)]
    pub quick: bool,

    /// Rewrites the tables in this page
    #[arg(long, value_name = "PAGE")]
    pub write: Option<PathBuf>,

    /// Where the caches live, and so the file system that is measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}
