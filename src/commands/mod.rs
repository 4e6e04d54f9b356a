//! The command line: arguments, commands and exit statuses.

mod argument;
mod cache_command;
mod check_config;
mod delete;
mod exit_status;
mod explain;
mod gc;
mod health;
mod migrate;
mod open_store;
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
use crate::logging::{MAX_LINE, printable, with_causes};
use argument::UsageError;
use exit_status::{EXIT_STATUSES, EXIT_USAGE};

/// Standalone HTTP binary cache daemon for Nix
///
/// Environment variables (NIX_STORED_*) configure the daemon and the commands. By default, the daemon
/// serves the cache in /var/lib/nixStored on 127.0.0.1:8100. The other commands work directly on the
/// cache, whether the daemon runs or not.
#[derive(Debug, Parser)]
#[command(name = "nix-stored", version, after_help = EXIT_STATUSES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Run the server (default)
    Serve,
    /// Collect garbage, or preview it
    Gc(gc::GcArgs),
    /// Print statistics of the cache
    Stats(stats::StatsArgs),
    /// Check every object in the cache
    Verify(verify::VerifyArgs),
    /// Remove store paths immediately
    Delete(delete::DeleteArgs),
    /// Keep store paths with their closures under a name
    Pin(pin::PinArgs),
    /// Remove a pin
    Unpin(pin::UnpinArgs),
    /// List the pins with the paths that they keep
    Pins(pin::PinsArgs),
    /// Check whether the daemon is healthy
    Health(health::HealthArgs),
    /// Copy a cache between directories and buckets
    Migrate(Box<migrate::MigrateArgs>),
    /// Print the effective configuration, without passwords
    CheckConfig(check_config::CheckConfigArgs),
}

/// The command line definition. The man page and the shell completions are generated from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command in `arguments`; the first argument is the name of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed standard error cannot be reported anywhere.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let config = Config::from_env();
    let result = match cli.command.unwrap_or(Command::Serve) {
        Command::CheckConfig(args) => check_config::run(&args, config),
        Command::Health(args) => health::run(&args, config),
        command => config.map_err(Into::into).and_then(|config| run_command(command, config)),
    };
    result.unwrap_or_else(|error| print_error(&error))
}

/// Runs a command with a valid configuration.
fn run_command(command: Command, config: Config) -> anyhow::Result<ExitCode> {
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

/// Prints an error to standard error, and returns its exit status.
fn print_error(error: &anyhow::Error) -> ExitCode {
    let problems = error.downcast_ref::<Problems>();
    let text = match problems {
        Some(problems) => problems.to_string(),
        None => format!("nix-stored: {}\n", printable(&with_causes(error.as_ref()), MAX_LINE)),
    };
    // A closed standard error cannot be reported anywhere.
    let _ = output::write(std::io::stderr().lock(), &text);
    if problems.is_some() || error.is::<UsageError>() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::FAILURE
    }
}
