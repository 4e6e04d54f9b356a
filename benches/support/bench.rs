//! The state of a run that all parts use.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::support::options::Options;
use crate::support::process::{Cores, ended_children_cpu_seconds};
use crate::support::scratch::Scratch;

pub const MIB: u64 = 1024 * 1024;
pub const GIB: u64 = 1024 * MIB;

/// A run.
#[derive(Debug)]
pub struct Bench {
    pub scratch: Scratch,
    pub rounds: usize,
    pub quick: bool,
    cores: Cores,
    all_cores: CpuSet,
    fresh: Cell<usize>,
}

/// The cores that a daemon may run on.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// A core of its own, so that the client takes none of its time.
    OwnCore,
    /// Any core, as in production.
    Anywhere,
}

impl Bench {
    /// Moves this process to the client's core.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let all_cores = sched_getaffinity(None)?;
        let cores = Cores::choose()?;
        cores.be_client()?;
        Ok(Self {
            scratch: Scratch::new(&options.dir)?,
            rounds: options.rounds(),
            quick: options.quick,
            cores,
            all_cores,
            fresh: Cell::new(0),
        })
    }

    /// Creates a directory that was never used before.
    pub fn fresh_dir(&self, what: &str) -> anyhow::Result<PathBuf> {
        self.fresh.set(self.fresh.get() + 1);
        self.scratch.make(&format!("{what}-{}", self.fresh.get()))
    }

    /// Starts a program that is measured.
    pub fn spawn(&self, command: &mut Command, place: Place) -> anyhow::Result<Child> {
        match place {
            Place::OwnCore => self.cores.spawn_server(command),
            Place::Anywhere => {
                sched_setaffinity(None, &self.all_cores)?;
                let child = command.spawn();
                self.cores.be_client()?;
                child.with_context(|| format!("{} does not start", command.get_program().display()))
            }
        }
    }

    /// Runs a program to its end and discards its output. Returns its CPU seconds, user and system.
    pub fn cpu_seconds_of(&self, command: &mut Command) -> anyhow::Result<f64> {
        let before = ended_children_cpu_seconds()?;
        let status = self.spawn(command.stdout(Stdio::null()), Place::OwnCore)?.wait()?;
        ensure!(status.success(), "{}: {status}", command.get_program().display());
        Ok(ended_children_cpu_seconds()? - before)
    }

    /// The CPU seconds of work in this thread, on the core for measured programs.
    pub fn own_cpu_seconds(
        &self,
        work: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let now = || {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
        };
        self.cores.as_server(|| {
            let begin = now();
            work()?;
            Ok(now() - begin)
        })?
    }

    /// The bytes available to an unprivileged user.
    pub fn free_space(&self) -> anyhow::Result<u64> {
        let disk = rustix::fs::statvfs(self.scratch.path())?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}
