//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures what verification costs.
#[derive(Debug, Parser)]
#[command(name = "verification", bin_name = "cargo bench --bench verification --")]
pub struct Options {
    /// Only some of: commits, cost, memory
    pub parts: Vec<String>,

    /// How often everything has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,

    /// Small sizes and one round: shows that everything works, and measures nothing
    #[arg(long)]
    pub quick: bool,

    /// Rewrites the tables in this page
    #[arg(long, value_name = "PAGE", conflicts_with = "parts")]
    pub write: Option<PathBuf>,

    /// Where the files live, and so the file system that is measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// Whether the part of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| part == name)
    }
}
