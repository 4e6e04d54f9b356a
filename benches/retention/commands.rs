//! The cost of the commands that read the whole cache.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Pid;

use crate::retention::cache::LargeCache;
use crate::support::bench::{Bench, Place};
use crate::support::process::{Memory, cpu_seconds, resident_mib};
use crate::support::report::Section;
use crate::support::sample::median;
use crate::support::say;

/// The limits for each command: seconds, and MiB of resident memory.
const GOAL: (f64, f64) = (10.0, 300.0);

/// The interval between two measurements of a program's memory.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The cost of a run.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
}

pub fn measure(bench: &Bench, cache: &LargeCache) -> anyhow::Result<Section> {
    let mut dry_run = Vec::new();
    let mut stats = Vec::new();
    let mut gc = Vec::new();
    // Fills the page cache.
    size_of(bench, cache)?;
    for round in 0..bench.rounds {
        say(&format!("commands: round {} of {}", round + 1, bench.rounds));
        let limit = limit_of(size_of(bench, cache)?);
        dry_run.push(run(bench, cache, &["gc", "--dry-run", "--max-size", &limit])?.0);
        stats.push(run(bench, cache, &["stats"])?.0);
        gc.push(run(bench, cache, &["gc", "--max-size", &limit])?.0);
    }
    let mut section = Section::new(
        &format!("{} paths, {} references", cache.paths, cache.references),
        &["command", "wall s", "CPU s", "peak MiB", "goal", ""],
    );
    for (name, costs) in
        [("`gc --dry-run`", dry_run), ("`stats`", stats), ("`gc`, which removes 10 %", gc)]
    {
        let of = |what: fn(&Cost) -> f64| median(costs.iter().map(what));
        let (wall, peak) = (of(|cost| cost.wall), of(|cost| cost.peak_mib));
        let met = wall <= GOAL.0 && peak <= GOAL.1;
        section.row([
            name.to_owned(),
            format!("{wall:.2}"),
            format!("{:.2}", of(|cost| cost.cpu)),
            format!("{peak:.0}"),
            format!("≤ {} s, ≤ {} MiB", GOAL.0, GOAL.1),
            if met { "met" } else { "**not met**" }.to_owned(),
        ]);
    }
    section.notes.push(
        "Each is a process of its own, on all cores, with everything in the page cache; medians of \
         the rounds"
            .to_owned(),
    );
    Ok(section)
}

/// The total size of all objects, in bytes.
pub fn size_of(bench: &Bench, cache: &LargeCache) -> anyhow::Result<u64> {
    let (_, output) = run(bench, cache, &["gc", "--dry-run", "--json"])?;
    let report: serde_json::Value = serde_json::from_str(&output)?;
    report["size_before"].as_u64().context("gc does not say how large the cache is")
}

/// A limit that a cache of this size exceeds so that a tenth of it is removed.
pub fn limit_of(size: u64) -> String {
    (size - 1).to_string()
}

/// Runs a command to its end. Returns its cost and its output.
fn run(bench: &Bench, cache: &LargeCache, args: &[&str]) -> anyhow::Result<(Cost, String)> {
    let output = cache.dir.with_extension("output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nix-stored"));
    command
        .args(args)
        .env("NIX_STORED_PATH", &cache.dir)
        .stdin(Stdio::null())
        .stdout(File::create(&output)?)
        .stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = bench.spawn(&mut command, Place::Anywhere)?;
    let pid = Pid::from_child(&child);
    let guard = bench.scratch.guard(pid)?;
    let mut cost = Cost { wall: 0.0, cpu: 0.0, peak_mib: 0.0 };
    let status = loop {
        // The process may have ended meanwhile.
        cost.peak_mib = resident_mib(&[pid], Memory::Peak).unwrap_or(cost.peak_mib);
        cost.cpu = cpu_seconds(&[pid]).unwrap_or(cost.cpu);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    cost.wall = begin.elapsed().as_secs_f64();
    drop(guard);
    ensure!(status.success(), "nix-stored {}: {status}", args.join(" "));
    Ok((cost, read(&output)?))
}

fn read(file: &Path) -> anyhow::Result<String> {
    Ok(fs::read_to_string(file)?)
}
