//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures the cache in a bucket beside the server alone.
#[derive(Debug, Parser)]
#[command(name = "s3", bin_name = "cargo bench --bench s3 --")]
pub struct Options {
    /// The program `garage`; without it the server is s3s-fs, which shows that everything works and
    /// is no measure
    #[arg(long, value_name = "PROGRAM")]
    pub garage: Option<PathBuf>,

    /// A folder with the commands of a Nix that reads `s3://` without keys, as 2.34 does; with it and
    /// Garage, Nix is measured, too
    #[arg(long, value_name = "FOLDER", requires = "garage")]
    pub nix: Option<PathBuf>,

    /// How often everything has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,

    /// Few, small objects and one round: shows that everything works, and measures nothing
    #[arg(long)]
    pub quick: bool,

    /// Rewrites the tables in this page
    #[arg(long, value_name = "PAGE")]
    pub write: Option<PathBuf>,

    /// Where the server has its files
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,

    /// Serves this folder as s3s-fs, and nothing else
    #[arg(long, hide = true)]
    pub serve: Option<PathBuf>,

    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    pub bench: bool,
}
