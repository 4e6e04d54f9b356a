//! `nix-stored health`: requests `/health` from a daemon.

mod address;
mod request;
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
use address::DaemonAddress;

/// Timeout of the command. Longer than the daemon takes to detect that its disk hangs.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit status: 0 healthy; 1 unhealthy, or no response; 64 the configuration or the \
                        arguments are wrong."
)]
pub(super) struct HealthArgs {
    /// Address of the daemon: http://host:port, https://host:port or unix:/path; by default the address
    /// in NIX_STORED_LISTEN_INTERFACE
    url: Option<String>,
}

pub(super) fn run(args: &HealthArgs, config: Result<Config, Problems>) -> anyhow::Result<ExitCode> {
    let address = match &args.url {
        Some(url) => DaemonAddress::parse(url)?,
        None => DaemonAddress::of(&config?)?,
    };
    let response = request::get_health(&address, Instant::now() + HEALTH_TIMEOUT);
    let response = response.with_context(|| format!("{address} does not respond"))?;
    let Some(health) = HealthResponse::parse(&response) else {
        let line = response.lines().next().unwrap_or_default();
        bail!("{address} is not a nix-stored daemon: it responded “{line}”");
    };
    let line = OneLine(format!("{address} {health}"));
    super::output::write(io::stdout().lock(), &format!("{line}\n"))?;
    Ok(if health.status == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The body of a `/health` response.
#[derive(Debug, Deserialize)]
struct HealthResponse {
    status: String,
    version: String,
    reason: Option<String>,
    store: HealthStore,
}

#[derive(Debug, Deserialize)]
struct HealthStore {
    free_bytes: Option<u64>,
}

impl HealthResponse {
    fn parse(response: &str) -> Option<Self> {
        let (_, body) = response.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}

impl fmt::Display for HealthResponse {
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
