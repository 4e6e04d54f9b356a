//! `nix-stored health`: requests `/health` from a daemon.

mod ask;
mod place;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::output::{OneLine, size};
use crate::config::{Config, Problems};
use place::Place;

/// Timeout of the command. Longer than the daemon takes to detect that its disk hangs.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 healthy; 1 unhealthy, or no response; 64 the configuration or the \
                        arguments are wrong."
)]
pub(super) struct Args {
    /// Address of the daemon: http://host:port, https://host:port or unix:/path; by default the address
    /// in NIX_STORED_LISTEN_INTERFACE
    url: Option<String>,
}

pub(super) fn run(args: &Args, config: Result<Config, Problems>) -> anyhow::Result<ExitCode> {
    let place = match &args.url {
        Some(url) => Place::parse(url)?,
        None => Place::of(&config?)?,
    };
    let answer = ask::ask(&place, Instant::now() + PATIENCE);
    let answer = answer.with_context(|| format!("{place} does not respond"))?;
    let Some(health) = Health::read(&answer) else {
        let line = answer.lines().next().unwrap_or_default();
        bail!("{place} is not a nix-stored daemon: it responded “{line}”");
    };
    let line = OneLine(format!("{place} {health}"));
    super::output::write(io::stdout().lock(), &format!("{line}\n"))?;
    Ok(if health.status == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The body of a `/health` response.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    version: String,
    reason: Option<String>,
    store: Store,
}

#[derive(Debug, Deserialize)]
struct Store {
    free_bytes: Option<u64>,
}

impl Health {
    fn read(answer: &str) -> Option<Self> {
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "is {}: nix-stored {}", self.status, self.version)?;
        if let Some(bytes) = self.store.free_bytes {
            write!(f, ", {} free", size(bytes))?;
        }
        match &self.reason {
            Some(reason) => write!(f, "; {reason}"),
            None => Ok(()),
        }
    }
}
