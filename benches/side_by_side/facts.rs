//! The machine and the versions that the numbers are from.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::bench::Bench;
use crate::nix;

/// Name and value, in the order in which they are shown.
#[derive(Debug)]
pub struct Facts(pub Vec<(&'static str, String)>);

impl Facts {
    pub fn gather(bench: &Bench) -> anyhow::Result<Self> {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = value(&cpu, "model name").unwrap_or("unknown");
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = value(&memory, "MemTotal").and_then(|it| it.trim_end_matches(" kB").parse().ok());
        let kib: f64 = kib.unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let date = httpdate::fmt_http_date(SystemTime::now());
        let mut nginx = Command::new(&bench.programs.nginx);
        let mut facts = vec![
            ("date", date.get(5..16).unwrap_or(&date).to_owned()),
            ("nix-stored", format!("{}{}", env!("CARGO_PKG_VERSION"), commit())),
            ("nginx", said(nginx.arg("-v")).replace("nginx version: nginx/", "")),
            ("nix", nix::version().unwrap_or_default().replace("nix (Nix) ", "")),
            ("rustc", said(Command::new("rustc").arg("-V")).replace("rustc ", "")),
            ("CPU", format!("{model}, {cores} cores")),
            ("memory", format!("{:.0} GiB", kib / 1024.0 / 1024.0)),
            ("kernel", kernel.trim().to_owned()),
            ("file system", file_system(&bench.scratch.path().canonicalize()?)?),
            ("rounds", bench.rounds.to_string()),
            (
                "log level of the daemon",
                if bench.log_requests { "`debug`: every request" } else { "default" }.to_owned(),
            ),
        ];
        if !bench.full {
            facts.push(("sizes", "small: these numbers mean nothing".to_owned()));
        }
        facts.retain(|(_, value)| !value.is_empty());
        Ok(Self(facts))
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        f.write_str(&facts.join("\n"))
    }
}

/// The value of the first `name : value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim_start_matches([' ', '\t', ':']).trim())
}

/// What a command says, wherever it says it; nginx has its version on standard error.
fn said(command: &mut Command) -> String {
    let Ok(output) = command.output() else {
        return String::new();
    };
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&said).trim().to_owned()
}

/// The commit that is measured, where there is one.
fn commit() -> String {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    match commit {
        Ok(output) if output.status.success() => {
            format!(" ({})", String::from_utf8_lossy(&output.stdout).trim())
        }
        _ => String::new(),
    }
}

/// The type of the file system that a directory is on: that of the longest mount point above it.
fn file_system(dir: &Path) -> anyhow::Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let types = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = Path::new(mount.split(' ').nth(4)?);
        dir.starts_with(point).then(|| (point.as_os_str().len(), kind.split(' ').next()))
    });
    // The last of several mounts on one point is the one that is seen.
    let longest = types.max_by_key(|(length, _)| *length);
    Ok(longest.and_then(|(_, kind)| kind).unwrap_or("unknown").to_owned())
}
