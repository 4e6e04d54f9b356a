//! The daemon under measurement.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rustix::process::Pid;

use crate::bench::{Bench, Place};
use crate::process::{Memory, cpu_seconds, resident_mib};
use crate::scratch::Leash;

/// How long the daemon may take to listen.
const TO_START: Duration = Duration::from_secs(20);

/// Killed on drop: nobody waits for what is under way.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
    log: PathBuf,
    _leash: Leash,
}

impl Daemon {
    /// Starts one over a directory and waits until it listens. It has none of the caller's own
    /// settings, nor of a service manager's.
    pub fn start(
        bench: &Bench,
        dir: PathBuf,
        settings: &[(&str, &str)],
        place: Place,
    ) -> anyhow::Result<Self> {
        let log = dir.with_extension("log");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nix-stored"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["NIX_STORED_", "LISTEN_", "NOTIFY_", "WATCHDOG_"]
                .iter()
                .any(|it| text.starts_with(it))
            {
                command.env_remove(&name);
            }
        }
        command
            .env("NIX_STORED_PATH", &dir)
            .env("NIX_STORED_LISTEN_INTERFACE", format!("127.0.0.1:{port}"))
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = bench.spawn(&mut command, place)?;
        let leash = bench.scratch.leash(Pid::from_child(&child))?;
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut daemon = Self { child, dir, address, log, _leash: leash };
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

    /// The directory that it serves.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it has logged so far.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// User and system CPU seconds so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&[Pid::from_child(&self.child)])
    }

    /// Resident memory in MiB.
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
