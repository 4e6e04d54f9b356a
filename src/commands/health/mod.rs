//! `nix-stored health`: whether a daemon can do what it is there for, asked as anybody would ask it.

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

/// The time for all of it. Longer than the daemon takes to find out that its disk hangs.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 it is well; 1 it is not, or does not answer; 64 the configuration \
                        or the arguments are wrong."
)]
pub(super) struct Args {
    /// Where the daemon is, http://host:port, https://host:port or unix:/path; without it, where
    /// NIX_STORED_LISTEN_INTERFACE says
    url: Option<String>,
}

pub(super) fn run(args: &Args, config: Result<Config, Problems>) -> anyhow::Result<ExitCode> {
    let place = match &args.url {
        Some(url) => Place::parse(url)?,
        None => Place::of(&config?)?,
    };
    let answer = ask::ask(&place, Instant::now() + PATIENCE);
    let answer = answer.with_context(|| format!("{place} does not answer"))?;
    let Some(health) = Health::read(&answer) else {
        let line = answer.lines().next().unwrap_or_default();
        bail!("{place} does not answer as a nix-stored does: “{line}”");
    };
    let line = OneLine(format!("{place} {health}"));
    super::output::write(io::stdout().lock(), &format!("{line}\n"))?;
    Ok(if health.status == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the daemon says.
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
