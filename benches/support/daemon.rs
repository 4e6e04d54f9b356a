//! The daemon under measurement.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rustix::process::Pid;

use crate::support::address::free_address;
use crate::support::bench::{Bench, Place};
use crate::support::process::{Memory, cpu_seconds, resident_mib};
use crate::support::scratch::KillAtExit;

/// The limit for the start of the daemon.
const TO_START: Duration = Duration::from_secs(20);

/// A running daemon. Killed on drop, without waiting for transfers.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
    log: PathBuf,
    _guard: KillAtExit,
}

impl Daemon {
    /// Starts the daemon on a directory, and waits until it listens.
    pub fn start(
        bench: &Bench,
        dir: PathBuf,
        settings: &[(&str, &str)],
        place: Place,
    ) -> anyhow::Result<Self> {
        let log = dir.with_extension("log");
        let address = free_address()?;
        let mut command = command(&dir, address);
        command
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = bench.spawn(&mut command, place)?;
        let guard = bench.scratch.guard(Pid::from_child(&child))?;
        let mut daemon = Self { child, dir, address, log, _guard: guard };
        daemon.wait_until_it_listens()?;
        Ok(daemon)
    }

    fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                let log = self.log().unwrap_or_default();
                bail!("the daemon does not start: {status}\n{log}");
            }
            ensure!(begin.elapsed() < TO_START, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log so far.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CPU seconds so far, user and system.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&[Pid::from_child(&self.child)])
    }

    /// The resident memory, in MiB.
    pub fn resident_mib(&self, which: Memory) -> anyhow::Result<f64> {
        resident_mib(&[Pid::from_child(&self.child)], which)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon on a directory, without settings from this process's environment or from a service
/// manager.
pub fn command(dir: &Path, address: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nix-stored"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let prefixes = ["NIX_STORED_", "LISTEN_", "NOTIFY_", "WATCHDOG_"];
        if prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.env("NIX_STORED_PATH", dir).env("NIX_STORED_LISTEN_INTERFACE", address.to_string());
    command
}
