//! The run of a comparison.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

use super::Arguments;
use super::needs::{self, Programs};
use super::server::{Kind, Server, tail};
use super::sizes::Sizes;
use crate::support::bench::Bench;
use crate::support::sample::Sample;

#[derive(Debug)]
pub struct Comparison {
    pub bench: Bench,
    pub programs: Programs,
    pub sizes: Sizes,
    pub log_requests: bool,
    /// The limit of open files of a process.
    pub open_files: u64,
    logs: RefCell<[PathBuf; 3]>,
}

impl Comparison {
    /// Fails if a program is missing. Moves this process to the core of the client.
    pub fn new(arguments: &Arguments, needs_nix: bool) -> anyhow::Result<Self> {
        Ok(Self {
            programs: Programs::find(needs_nix)?,
            open_files: needs::raise_open_files()?,
            bench: Bench::new(&arguments.options)?,
            sizes: if arguments.options.quick { Sizes::QUICK } else { Sizes::FULL },
            log_requests: arguments.log_requests,
            logs: RefCell::default(),
        })
    }

    /// Creates an empty directory.
    pub fn fresh_dir(&self, what: &str) -> anyhow::Result<PathBuf> {
        self.bench.fresh_dir(what)
    }

    /// Waits until all written data is on the disk.
    pub fn settle(&self) -> anyhow::Result<()> {
        self.bench.scratch.settle()
    }

    /// Gives each server a turn in every round. A turn makes one sample for each line of the row.
    /// The result has a list of samples for each line and, in that, for each of [`Kind::ALL`].
    pub fn take_turns(
        &self,
        mut turn: impl FnMut(Kind) -> anyhow::Result<Vec<Sample>>,
    ) -> anyhow::Result<Vec<[Vec<Sample>; 3]>> {
        let mut lines: Vec<[Vec<Sample>; 3]> = Vec::new();
        for round in 0..self.bench.rounds {
            for position in 0..Kind::ALL.len() {
                // The order rotates, so that no server always follows the same one.
                let index = (position + round) % Kind::ALL.len();
                self.settle()?;
                let kind = Kind::ALL[index];
                let samples = turn(kind).with_context(|| self.log_tail(kind))?;
                lines.resize_with(samples.len(), Default::default);
                for (line, sample) in lines.iter_mut().zip(samples) {
                    line[index].push(sample);
                }
            }
        }
        Ok(lines)
    }

    /// Sets the log file of the latest server of a kind.
    pub fn logs_to(&self, kind: Kind, log: &Path) {
        self.logs.borrow_mut()[kind.index()] = log.to_owned();
    }

    /// The name of a server, and the end of its log.
    fn log_tail(&self, kind: Kind) -> String {
        let log = tail(&self.logs.borrow()[kind.index()]);
        if log.is_empty() { kind.to_string() } else { format!("{kind}, whose log ends\n{log}\n") }
    }

    /// Starts all servers on one directory.
    pub fn start_all(&self, dir: &Path) -> anyhow::Result<Servers> {
        let [ours, nginx, tuned] = Kind::ALL.map(|kind| Server::start(self, kind, dir));
        Ok(Servers([ours?, nginx?, tuned?]))
    }

    /// Starts all servers as mirrors of an upstream, with empty directories.
    pub fn start_mirrors(&self, upstream: SocketAddr) -> anyhow::Result<Servers> {
        let start = |kind| Server::start_mirror(self, kind, &self.fresh_dir("mirror")?, upstream);
        let [ours, nginx, tuned] = Kind::ALL.map(start);
        Ok(Servers([ours?, nginx?, tuned?]))
    }
}

/// One server of each kind.
pub struct Servers([Server; 3]);

impl Servers {
    pub fn of(&self, kind: Kind) -> &Server {
        &self.0[kind.index()]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        self.0.iter()
    }
}

/// Measures wall time and the server's CPU time.
pub struct Meter<'a> {
    pub server: &'a Server,
    begin: Instant,
    cpu: f64,
}

impl<'a> Meter<'a> {
    pub fn start(server: &'a Server) -> anyhow::Result<Self> {
        Ok(Self { server, cpu: server.cpu_seconds()?, begin: Instant::now() })
    }

    /// Wall and CPU seconds since the start.
    pub fn read(&self) -> anyhow::Result<(f64, f64)> {
        let wall = self.begin.elapsed().as_secs_f64();
        Ok((wall, self.server.cpu_seconds()? - self.cpu))
    }
}
