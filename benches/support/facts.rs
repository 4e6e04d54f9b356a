//! The machine and the versions of a benchmark.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::support::bench::Bench;

/// Names and values, in the order of the output.
#[derive(Debug)]
pub struct Facts(pub Vec<(&'static str, String)>);

impl Facts {
    /// Gathers the facts for every benchmark. Call it at the start: a later checkout changes the
    /// commit.
    pub fn gather(bench: &Bench) -> anyhow::Result<Self> {
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let model = value(&cpu, "model name").unwrap_or("unknown");
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kib = value(&memory, "MemTotal").and_then(|it| it.trim_end_matches(" kB").parse().ok());
        let kib: f64 = kib.unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let date = httpdate::fmt_http_date(SystemTime::now());
        let commit = output_of("git", &["rev-parse", "--short", "HEAD"]);
        let mut facts = vec![
            ("date", date.get(5..16).unwrap_or(&date).to_owned()),
            ("nix-stored", format!("{} {commit}", env!("CARGO_PKG_VERSION"))),
            ("rustc", output_of("rustc", &["-V"]).replace("rustc ", "")),
            ("CPU", format!("{model}, {cores} cores")),
            ("memory", format!("{:.0} GiB", kib / 1024.0 / 1024.0)),
            ("kernel", kernel.trim().to_owned()),
            ("file system", file_system(&bench.scratch.path().canonicalize()?)?),
            ("rounds", bench.rounds.to_string()),
        ];
        if bench.quick {
            facts.push(("sizes", "small: these numbers mean nothing".to_owned()));
        }
        Ok(Self(facts))
    }

    /// Adds a fact, unless it is unknown.
    pub fn add(&mut self, name: &'static str, value: String) {
        if !value.is_empty() {
            self.0.push((name, value));
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        f.write_str(&facts.join("\n"))
    }
}

/// The value of the first line `name : value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim_start_matches([' ', '\t', ':']).trim())
}

/// The first line that a command prints; nothing if it fails. nginx prints its version on standard
/// error.
pub fn output_of(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            let text = String::from_utf8_lossy(&text);
            text.lines().next().unwrap_or_default().trim().to_owned()
        }
        _ => String::new(),
    }
}

/// The type of the file system of a directory: that of the longest mount point above it.
fn file_system(dir: &Path) -> anyhow::Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let types = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = Path::new(mount.split(' ').nth(4)?);
        dir.starts_with(point).then(|| (point.as_os_str().len(), kind.split(' ').next()))
    });
    // Of several mounts on one point, the last is visible.
    let longest = types.max_by_key(|(length, _)| *length);
    Ok(longest.and_then(|(_, kind)| kind).unwrap_or("unknown").to_owned())
}
