//! A running server, on the server's core.

use std::fmt;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::side_by_side::comparison::Comparison;
use crate::side_by_side::nginx;
use crate::support::address::free_address;
use crate::support::bench::Place;
use crate::support::daemon;
use crate::support::process::{children_of, cpu_seconds};
use crate::support::scratch::KillAtExit;

/// The limit for the start and the end of a server.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The servers in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NixStored,
    Nginx,
    /// With `open_file_cache`, and 64 KiB buffers for bodies.
    NginxTuned,
}

impl Kind {
    /// All of them, in the order of the tables' columns.
    pub const ALL: [Self; 3] = [Self::NixStored, Self::Nginx, Self::NginxTuned];

    /// The index in [`Kind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NixStored => "nix-stored",
            Self::Nginx => "nginx",
            Self::NginxTuned => "nginx-ofc",
        })
    }
}

/// Killed on drop.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    child: Child,
    pids: Vec<Pid>,
    address: SocketAddr,
    /// The time from the start until it accepted a connection.
    pub started_in: Duration,
    guards: Vec<KillAtExit>,
}

impl Server {
    /// Starts a server on `dir` for the usual number of connections.
    pub fn start(comparison: &Comparison, kind: Kind, dir: &Path) -> anyhow::Result<Self> {
        Self::start_for(comparison, kind, dir, 1024)
    }

    /// Starts a server on `dir` for this number of `connections`, and waits until it listens.
    pub fn start_for(
        comparison: &Comparison,
        kind: Kind,
        dir: &Path,
        connections: usize,
    ) -> anyhow::Result<Self> {
        Self::start_with(comparison, kind, dir, connections, None)
    }

    /// Starts a mirror of another server, with its cache in `dir`.
    pub fn start_mirror(
        comparison: &Comparison,
        kind: Kind,
        dir: &Path,
        upstream: SocketAddr,
    ) -> anyhow::Result<Self> {
        Self::start_with(comparison, kind, dir, 1024, Some(upstream))
    }

    fn start_with(
        comparison: &Comparison,
        kind: Kind,
        dir: &Path,
        connections: usize,
        upstream: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let own = comparison.fresh_dir("server")?;
        let log = own.join("error.log");
        let mut command = match kind {
            Kind::NixStored => our_command(comparison, dir, address, upstream),
            Kind::Nginx | Kind::NginxTuned => {
                let tuned = kind == Kind::NginxTuned;
                let setup = nginx::Setup {
                    root: dir,
                    own: &own,
                    port: address.port(),
                    tuned,
                    connections,
                    upstream,
                };
                fs::write(own.join("nginx.conf"), nginx::config(setup))?;
                let mut command = Command::new(&comparison.programs.nginx);
                command.arg("-p").arg(&own).arg("-e").arg(&log);
                command.arg("-c").arg(own.join("nginx.conf"));
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        comparison.logs_to(kind, &log);
        let begin = Instant::now();
        let child = comparison.bench.spawn(&mut command, Place::OwnCore)?;
        let pid = Pid::from_child(&child);
        let mut server = Self {
            kind,
            child,
            pids: vec![pid],
            address,
            started_in: Duration::ZERO,
            guards: vec![comparison.bench.scratch.guard(pid)?],
        };
        server.wait_until_it_listens(&log, begin)?;
        if kind != Kind::NixStored {
            server.find_workers(comparison, begin)?;
        }
        Ok(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All processes of the server.
    pub fn pids(&self) -> &[Pid] {
        &self.pids
    }

    /// The CPU seconds of all processes so far, user and system.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(&self.pids)
    }

    fn wait_until_it_listens(&mut self, log: &Path, begin: Instant) -> anyhow::Result<()> {
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} does not start: {status}\n{}", self.kind, tail(log));
            }
            ensure!(begin.elapsed() < TIMEOUT, "{} does not listen", self.kind);
            // Short compared to the measured time, and long enough to leave the machine to the
            // server.
            std::thread::sleep(Duration::from_micros(200));
        }
        self.started_in = begin.elapsed();
        Ok(())
    }

    /// Finds the workers of nginx, which listens before it starts them.
    fn find_workers(&mut self, comparison: &Comparison, begin: Instant) -> anyhow::Result<()> {
        loop {
            let workers = children_of(Pid::from_child(&self.child))?;
            if !workers.is_empty() {
                for worker in workers {
                    self.pids.push(worker);
                    self.guards.push(comparison.bench.scratch.guard(worker)?);
                }
                return Ok(());
            }
            ensure!(begin.elapsed() < TIMEOUT, "{} has no worker", self.kind);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On SIGTERM an nginx master also ends its workers. The daemon would finish transfers
        // first, which is not needed.
        let signal = if self.kind == Kind::NixStored { Signal::KILL } else { Signal::TERM };
        let _ = kill_process(Pid::from_child(&self.child), signal);
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > TIMEOUT {
                for &pid in &self.pids {
                    let _ = kill_process(pid, Signal::KILL);
                }
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn our_command(
    comparison: &Comparison,
    dir: &Path,
    address: SocketAddr,
    upstream: Option<SocketAddr>,
) -> Command {
    let mut command = daemon::command(dir, address);
    if let Some(upstream) = upstream {
        command.env("NIX_STORED_UPSTREAMS", format!("http://{upstream}"));
    }
    if comparison.log_requests {
        command.env("NIX_STORED_LOG_LEVEL", "debug");
    }
    command
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
