//! Metrics of the process, from the kernel.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::proto::MetricFamily;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::families::{Sample, counter, gauge};

/// Metrics with the names that the client libraries of Prometheus use.
pub(super) fn families(started: SystemTime) -> Vec<MetricFamily> {
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let spent = spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9;
    let max_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let mut families = vec![
        gauge(
            "process_start_time_seconds",
            "Start time of the process since the Unix epoch.",
            vec![Sample::exact(started)],
        ),
        counter(
            "process_cpu_seconds_total",
            "CPU time of the process.",
            vec![Sample::exact(spent)],
        ),
        gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            vec![Sample::plain(max_files)],
        ),
    ];
    let help = "Resident memory of the process.";
    families.extend(
        resident_bytes()
            .map(|bytes| gauge("process_resident_memory_bytes", help, vec![Sample::plain(bytes)])),
    );
    let help = "Open file descriptors.";
    families.extend(open_files().map(|n| gauge("process_open_fds", help, vec![Sample::plain(n)])));
    families
}

/// Resident memory; `None` without the `/proc` of Linux.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn open_files() -> Option<u64> {
    // The length is the number of open files since Linux 6.2, and 0 before.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64),
        known => Some(known),
    }
}
