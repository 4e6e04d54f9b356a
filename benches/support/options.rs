//! The options of all benchmarks.

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,

    /// Use small sizes and one round: checks that everything works, and measures nothing
    #[arg(long)]
    pub quick: bool,

    /// Write the results into this page
    #[arg(long, value_name = "PAGE")]
    pub write: Option<PathBuf>,

    /// Directory of the caches, and thereby the file system that is measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,
}

impl Options {
    /// The number of rounds; one if `--quick` is given.
    pub fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds.into() }
    }
}
