//! `nix-stored`: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use nix_stored::commands::{self, Cli};

fn main() -> ExitCode {
    commands::run(&Cli::parse())
}
