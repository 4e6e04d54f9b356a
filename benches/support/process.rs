//! The cores of processes, and their cost.

use std::fs;
use std::ops::RangeInclusive;
use std::process::{Child, Command};

use anyhow::{Context, bail};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A core for the server and another for everything else.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    pub server: usize,
    pub client: usize,
}

impl Cores {
    /// The first and the last core that this process may use, because adjacent ones may be
    /// hyper-threads of one core.
    pub fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        match (cores.next(), cores.next_back()) {
            (Some(server), Some(client)) => Ok(Self { server, client }),
            _ => bail!("needs two cores: one for the server and one for the client"),
        }
    }

    /// Moves the calling thread, and everything it starts later, to the client's core.
    pub fn be_client(self) -> anyhow::Result<()> {
        Ok(sched_setaffinity(None, &only(self.client))?)
    }

    /// Runs a function on the server's core.
    pub fn as_server<T>(self, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        sched_setaffinity(None, &only(self.server))?;
        let result = work();
        self.be_client()?;
        Ok(result)
    }

    /// Starts a server on its core. All its threads and processes inherit the core of the thread
    /// that starts it.
    pub fn spawn_server(self, command: &mut Command) -> anyhow::Result<Child> {
        let program = command.get_program().display().to_string();
        self.as_server(|| command.spawn())?.with_context(|| format!("{program} does not start"))
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

/// A process ID as a path segment of `/proc`.
pub fn on_path(pid: Pid) -> String {
    pid.as_raw_nonzero().to_string()
}

/// The CPU seconds of these processes so far, user and system.
pub fn cpu_seconds(pids: &[Pid]) -> anyhow::Result<f64> {
    pids.iter().map(|&pid| times(&on_path(pid), 14..=15)).sum()
}

/// The CPU seconds of this process's ended children and their descendants, user and system.
pub fn ended_children_cpu_seconds() -> anyhow::Result<f64> {
    times("self", 16..=17)
}

/// The sum of some fields of `/proc/PID/stat` that count ticks, by their numbers in proc(5).
fn times(pid: &str, fields: RangeInclusive<usize>) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The second field is the program's name, which can contain spaces.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/PID/stat has no program name")?;
    let rest = rest.split(' ').skip(fields.start() - 3).take(fields.count());
    seconds(rest)
}

/// The CPU seconds that the machine spent on anything but this process and its children, once the
/// children have ended.
pub fn others_cpu_seconds() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<&str> = all.split_whitespace().skip(1).take(8).collect();
    // The fourth and fifth fields are idle time.
    let busy = fields.iter().enumerate().filter(|(index, _)| !matches!(index, 3 | 4));
    Ok(seconds(busy.map(|(_, field)| *field))? - times("self", 14..=17)?)
}

/// Converts ticks to seconds.
fn seconds<'a>(ticks: impl Iterator<Item = &'a str>) -> anyhow::Result<f64> {
    let ticks = ticks.map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// A measure of memory.
#[derive(Debug, Clone, Copy)]
pub enum Memory {
    /// The resident memory now.
    Now,
    /// The peak of the resident memory.
    Peak,
}

/// The resident memory of these processes, in MiB.
pub fn resident_mib(pids: &[Pid], which: Memory) -> anyhow::Result<f64> {
    let label = match which {
        Memory::Now => "VmRSS:",
        Memory::Peak => "VmHWM:",
    };
    pids.iter()
        .map(|&pid| {
            let status = fs::read_to_string(format!("/proc/{}/status", on_path(pid)))
                .context("the server has ended")?;
            let line = status.lines().find_map(|line| line.strip_prefix(label));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
            let kib: f64 = kib.context("/proc/PID/status has no memory")?.trim().parse()?;
            Ok(kib / 1024.0)
        })
        .sum()
}

/// The child processes of a process.
pub fn children_of(parent: Pid) -> anyhow::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // The process may have ended meanwhile.
        let stat = fs::read_to_string(format!("/proc/{}/stat", on_path(pid))).unwrap_or_default();
        let ppid = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        if ppid.is_some_and(|ppid| ppid == on_path(parent)) {
            children.push(pid);
        }
    }
    Ok(children)
}
