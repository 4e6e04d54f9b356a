//! The machine and the versions that the numbers are from.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use crate::bench::Bench;
use crate::report::Section;

/// What is measured where, beside which tools.
pub fn gather(bench: &Bench, tools: &[&str]) -> anyhow::Result<Section> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or("unknown").trim_start_matches(['\t', ' ', ':']);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let commit = said("git", &["rev-parse", "--short", "HEAD"]);
    let sizes = if bench.quick { "small: these numbers mean nothing" } else { "full" };
    let dir = bench.scratch.path().to_string_lossy();
    let mut section = Section::new("", &["measured with", ""]);
    for (name, value) in [
        ("date", date.get(5..16).unwrap_or(&date).to_owned()),
        ("nix-stored", format!("{} {commit}", env!("CARGO_PKG_VERSION"))),
        ("rustc", said("rustc", &["-V"]).replace("rustc ", "")),
        ("CPU", format!("{model}, {cores} cores")),
        ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease")?),
        ("file system", last_line(&said("df", &["--output=fstype", &dir]))),
        ("rounds", bench.rounds.to_string()),
        ("sizes", sizes.to_owned()),
    ] {
        section.row([name.to_owned(), value.trim().to_owned()]);
    }
    for tool in tools {
        section.row([(*tool).to_owned(), first_line(&said(tool, &["--version"]))]);
    }
    Ok(section)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn last_line(text: &str) -> String {
    text.lines().next_back().unwrap_or_default().to_owned()
}

/// What a command says; nothing where there is no such command.
fn said(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => String::new(),
    }
}
