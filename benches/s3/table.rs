//! A table that compares ways to request the same object.

use crate::support::report::Section;
use crate::support::sample::median;

/// The results of one way, round by round.
#[derive(Debug)]
pub struct Way {
    pub name: &'static str,
    pub rounds: Vec<Turn>,
    /// The minimum, relative to the first way.
    pub goal: Option<f64>,
}

/// One turn.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// In the unit of the table; more is better.
    pub value: f64,
    /// The CPU seconds of the server and of the daemon.
    pub cpu: [f64; 2],
}

impl Way {
    pub fn new(name: &'static str, goal: Option<f64>) -> Self {
        Self { name, rounds: Vec::new(), goal }
    }
}

/// A table that compares each way with the first, turn by turn.
pub fn table(title: &str, unit: &str, ways: &[Way]) -> Section {
    let columns = ["way", unit, "beside the first", "goal", "server CPU s", "daemon CPU s"];
    let mut section = Section::new(title, &columns);
    let Some(first) = ways.first() else {
        return section;
    };
    for way in ways.iter().filter(|way| !way.rounds.is_empty()) {
        let values = || way.rounds.iter().map(|turn| turn.value);
        let least = values().fold(f64::INFINITY, f64::min);
        let most = values().fold(0.0, f64::max);
        let ratios =
            way.rounds.iter().zip(&first.rounds).map(|(way, first)| way.value / first.value);
        let cpu = |which: usize| median(way.rounds.iter().map(|turn| turn.cpu[which]));
        section.row([
            way.name.to_owned(),
            format!("{:.0} ({least:.0}–{most:.0})", median(values())),
            format!("{:.2}", median(ratios)),
            way.goal.map_or_else(String::new, |goal| format!("≥ {goal}")),
            format!("{:.2}", cpu(0)),
            format!("{:.2}", cpu(1)),
        ]);
    }
    section
}
