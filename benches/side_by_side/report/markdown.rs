//! The page: what is between two comments in it is rewritten, the rest is people's.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::facts::Facts;
use crate::line::{Counts, Line};
use crate::sample::median;
use crate::server::Kind;

/// Rewrites the results in `page`: those of the daemon as it comes, or those with every request
/// logged.
pub fn rewrite(
    page: &Path,
    log_requests: bool,
    facts: &Facts,
    lines: &[Line],
) -> anyhow::Result<()> {
    let part = if log_requests { "side_by_side --log-requests" } else { "side_by_side" };
    let (begin, end) = (format!("<!-- {part}: begin -->"), format!("<!-- {part}: end -->"));
    let text = fs::read_to_string(page)?;
    let missing = || format!("{} has no {begin} … {end}", page.display());
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    let results = results(facts, lines);
    fs::write(page, format!("{before}{begin}\n\n{results}\n{end}{after}"))?;
    Ok(())
}

fn results(facts: &Facts, lines: &[Line]) -> String {
    let mut text =
        String::from("| row | unit | nix-stored | nginx | nginx-ofc | ratio | goal | |\n");
    text += "|---|---|--:|--:|--:|--:|---|---|\n";
    for line in lines {
        let [ours, nginx, tuned] = Kind::ALL.map(|kind| line.unit.show(line.value(kind)));
        text += &format!(
            "| {} | {} | {ours} | {nginx} | {tuned} | {:.2} | {} | {} |\n",
            line.label,
            line.unit,
            line.ratio(),
            line.goal(),
            if line.met() { "met" } else { "**not met**" },
        );
    }
    for line in lines.iter().filter(|line| !line.note.is_empty()) {
        text += &format!("\n{}.\n", line.note);
    }
    text += "\n| measured with | |\n|---|---|\n";
    for (name, value) in &facts.0 {
        text += &format!("| {name} | {value} |\n");
    }
    text += "\n<details><summary>Every row with its spread, wall and CPU time</summary>\n\n";
    text += "| row | server | counts | value (lowest to highest) | wall s | server CPU s |\n";
    text += "|---|---|---|--:|--:|--:|\n";
    for line in lines {
        for kind in Kind::ALL {
            text += &details(line, kind);
        }
    }
    text += "\n</details>\n";
    text
}

/// What stands behind one number of the table.
fn details(line: &Line, kind: Kind) -> String {
    let samples = line.samples_of(kind);
    let show = |number| line.unit.show(number);
    let (low, high) = line.range(kind);
    format!(
        "| {} | {kind} | {} | {} ({} to {}) | {:.3} | {:.3} |\n",
        line.label,
        if line.counts == Counts::Best { "best" } else { "median" },
        show(line.value(kind)),
        show(low),
        show(high),
        median(samples.iter().map(|sample| sample.wall)),
        median(samples.iter().map(|sample| sample.cpu)),
    )
}
