//! The results for a terminal.

use crate::side_by_side::line::Line;
use crate::side_by_side::server::Kind;
use crate::support::sample::median;

/// A line with all its measurements.
pub fn details(line: &Line) -> String {
    let mut text = format!("  {} [{}]", line.label, line.unit);
    for kind in Kind::ALL {
        let (low, high) = line.range(kind);
        let show = |number| line.unit.show(number);
        let beside = |of: fn(&crate::support::sample::Sample) -> f64| {
            median(line.samples_of(kind).iter().map(of))
        };
        text += &format!(
            "\n    {kind:10} {:>10}  ({} to {})   wall {:.3} s, CPU {:.3} s",
            show(line.value(kind)),
            show(low),
            show(high),
            beside(|sample| sample.wall),
            beside(|sample| sample.cpu),
        );
    }
    if !line.note.is_empty() {
        text += &format!("\n    {}", line.note);
    }
    text
}

/// All lines with their goals.
pub fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.label.chars().count()).max().unwrap_or_default();
    let mut text = format!(
        "{:width$}  {:>13}  {:>10}  {:>10}  {:>10}  {:>6}  goal\n",
        "", "", "nix-stored", "nginx", "nginx-ofc", "ratio"
    );
    for line in lines {
        let [ours, nginx, tuned] = Kind::ALL.map(|kind| line.unit.show(line.value(kind)));
        text += &format!(
            "{:width$}  {:>13}  {ours:>10}  {nginx:>10}  {tuned:>10}  {:>6.2}  {}: {}\n",
            line.label,
            line.unit,
            line.ratio(),
            line.goal(),
            if line.met() { "met" } else { "NOT MET" },
        );
    }
    text
}
