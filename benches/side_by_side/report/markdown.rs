//! The results as Markdown, for a page.

use crate::side_by_side::line::{Counts, Line};
use crate::side_by_side::server::Kind;
use crate::support::facts::Facts;
use crate::support::sample::median;

pub fn results(facts: &Facts, lines: &[Line]) -> String {
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

/// The details of one number in the table.
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
