//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures nix-stored beside nginx.
#[derive(Debug, Parser)]
#[command(name = "side_by_side", bin_name = "cargo bench --bench side_by_side --")]
pub struct Options {
    /// Only rows whose name contains one of these
    pub rows: Vec<String>,

    /// Lists the rows and ends
    #[arg(long)]
    pub list: bool,

    /// How often each server has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,

    /// Small sizes and one round: shows that everything works, and measures nothing
    #[arg(long)]
    pub quick: bool,

    /// Runs the daemon with NIX_STORED_LOG_LEVEL=debug, which logs every request
    #[arg(long)]
    pub log_requests: bool,

    /// Rewrites the table in this page, and the picture beside it
    #[arg(long, value_name = "PAGE", conflicts_with = "rows")]
    pub write: Option<PathBuf>,

    /// Where the files live, and so the file system that is measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// Whether the row of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }

    /// How often each server has its turn.
    pub fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds.into() }
    }
}
