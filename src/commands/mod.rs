//! What the program can be told to do.

mod argument;
mod check_config;
mod delete;
mod explain;
mod gc;
mod health;
mod migrate;
mod offline;
mod opening;
mod output;
mod owner;
mod pin;
mod progress_bar;
mod reload;
pub mod serve;
mod signals;
mod stats;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Problems};
use crate::logging::{LINE, printable, with_causes};
use argument::Unusable;

/// A binary cache for Nix: plain `nix copy` in, plain substituters out.
///
/// Everything is configured by NIX_STORED_* environment variables; without any, the cache in
/// /var/lib/nixStored is served on 127.0.0.1:8100. The commands work on the same cache, whether it
/// is being served or not.
#[derive(Debug, Parser)]
#[command(name = "nix-stored", version, after_help = EXIT_STATUSES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Serves the cache until it is told to stop; what is done without a command
    Serve,
    /// Removes what the limits say, or shows what that would be
    Gc(gc::Args),
    /// Says what is in the cache
    Stats(stats::Args),
    /// Checks that everything in the cache is what it claims to be
    Verify(verify::Args),
    /// Removes store paths now
    Delete(delete::Args),
    /// Keeps store paths, with everything that they need, under a name
    Pin(pin::PinArgs),
    /// Takes a pin away
    Unpin(pin::UnpinArgs),
    /// Lists the pins, and what each of them keeps
    Pins(pin::PinsArgs),
    /// Asks the daemon whether it can do what it is there for
    Health(health::Args),
    /// Copies a cache between directories and buckets
    Migrate(Box<migrate::Args>),
    /// Prints the configuration as it is understood, without passwords
    CheckConfig(check_config::Args),
}

/// What holds for all commands.
const EXIT_STATUSES: &str = "Exit status: 0 done; 1 failed; 2 the answer is no (each command's \
                             --help says to what); 64 the configuration or the arguments are wrong.";

/// The answer is no.
const EXIT_NO: u8 = 2;

/// The configuration or the arguments are wrong: `EX_USAGE` of sysexits(3).
const EXIT_USAGE: u8 = 64;

/// What the program understands. The man page and the shell completions are made of it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the arguments say, of which the first is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(told) => {
            // Nothing can be done where nobody listens.
            let _ = told.print();
            return ExitCode::from(if told.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let config = Config::from_env();
    let done = match cli.command.unwrap_or(Command::Serve) {
        Command::CheckConfig(args) => check_config::run(&args, config),
        Command::Health(args) => health::run(&args, config),
        command => config.map_err(Into::into).and_then(|config| on_config(command, config)),
    };
    done.unwrap_or_else(|error| tell(&error))
}

/// Does what needs the configuration to be right.
fn on_config(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve => serve::run(config).map(|()| ExitCode::SUCCESS),
        Command::Gc(args) => gc::run(args, config),
        Command::Stats(args) => stats::run(args, config),
        Command::Verify(args) => verify::run(args, config),
        Command::Delete(args) => delete::run(args, config),
        Command::Pin(args) => pin::pin(args, config),
        Command::Unpin(args) => pin::unpin(args, config),
        Command::Pins(args) => pin::pins(args, config),
        Command::Health(args) => health::run(&args, Ok(config)),
        Command::Migrate(args) => migrate::run(*args, config),
        Command::CheckConfig(args) => check_config::run(&args, Ok(config)),
    }
}

/// Says on standard error why nothing came of it, and with what exit status.
fn tell(error: &anyhow::Error) -> ExitCode {
    let problems = error.downcast_ref::<Problems>();
    let text = match problems {
        Some(problems) => problems.to_string(),
        None => format!("nix-stored: {}\n", printable(&with_causes(error.as_ref()), LINE)),
    };
    // Nothing can be done where nobody listens.
    let _ = output::write(std::io::stderr().lock(), &text);
    if problems.is_some() || error.is::<Unusable>() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::FAILURE
    }
}
