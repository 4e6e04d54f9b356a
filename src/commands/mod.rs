//! What the program can be told to do.

pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Problems};

/// A binary cache for Nix: plain `nix copy` in, plain substituters out.
///
/// Everything is configured by NIX_STORED_* environment variables; without any, the cache in
/// /var/lib/nixStored is served on 127.0.0.1:8100.
#[derive(Debug, Parser)]
#[command(name = "nix-stored", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Serves the cache until it is told to stop; what is done without a command
    Serve,
}

/// The configuration is wrong: `EX_USAGE` of sysexits(3).
const EXIT_USAGE: u8 = 64;

/// Does what the arguments say.
pub fn run(cli: &Cli) -> ExitCode {
    let done = match cli.command {
        None | Some(Command::Serve) => Config::from_env().map_err(Into::into).and_then(serve::run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast::<Problems>() {
            Ok(problems) => {
                eprint!("{problems}");
                ExitCode::from(EXIT_USAGE)
            }
            Err(error) => {
                eprintln!("nix-stored: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
