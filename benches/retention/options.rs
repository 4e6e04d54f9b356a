//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures what it costs to keep a large cache within its limits.
#[derive(Debug, Parser)]
#[command(name = "retention", bin_name = "cargo bench --bench retention --")]
pub struct Options {
    /// How often everything has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,

    /// A small cache and one round: shows that everything works, and measures nothing
    #[arg(long)]
    pub quick: bool,

    /// Rewrites the tables in this page
    #[arg(long, value_name = "PAGE")]
    pub write: Option<PathBuf>,

    /// Where the cache lives, and so the file system that is measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}
