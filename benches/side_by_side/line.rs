//! A line of the table: what was measured, what it has to be, and whether it is.

use std::fmt;

use crate::side_by_side::server::Kind;
use crate::support::sample::{Sample, median};

/// What the numbers of a line are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    RequestsPerCpuSecond,
    Microseconds,
    CpuSecondsPerGib,
    Seconds,
    FilesPerSecond,
    Mib,
    Milliseconds,
    Ratio,
}

impl Unit {
    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::RequestsPerCpuSecond | Self::FilesPerSecond)
    }

    /// A number of this unit, with as many digits as mean something.
    pub fn show(self, number: f64) -> String {
        match self {
            Self::RequestsPerCpuSecond | Self::Microseconds | Self::FilesPerSecond => {
                format!("{number:.0}")
            }
            Self::Mib | Self::Milliseconds => format!("{number:.1}"),
            Self::Ratio => format!("{number:.2}"),
            Self::CpuSecondsPerGib | Self::Seconds => format!("{number:.3}"),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RequestsPerCpuSecond => "req per CPU s",
            Self::Microseconds => "µs",
            Self::CpuSecondsPerGib => "CPU s per GiB",
            Self::Seconds => "s",
            Self::FilesPerSecond => "files/s",
            Self::Mib => "MiB",
            Self::Milliseconds => "ms",
            Self::Ratio => "ratio",
        })
    }
}

/// Which of a server's turns counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    Median,
    /// The same write costs several times as much in one turn as in another, whoever makes it: only
    /// the best turn says something about the server.
    Best,
}

/// What a line has to be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// So many times the better one of the two nginx.
    TimesNginx(f64),
    /// So many times the nginx with `open_file_cache`.
    TimesTuned(f64),
    /// So many times the better one of the two nginx with something added, in the line's unit.
    TimesNginxPlus { times: f64, plus: f64, what: &'static str },
    /// In the line's unit.
    AtMost(f64),
}

/// What was measured.
#[derive(Debug)]
pub struct Line {
    pub label: String,
    /// For the picture.
    pub short: String,
    pub unit: Unit,
    pub counts: Counts,
    pub goal: Goal,
    /// In the order of [`Kind::ALL`].
    pub samples: [Vec<Sample>; 3],
    /// What has to be known to read it.
    pub note: String,
}

impl Line {
    pub fn new(
        label: impl Into<String>,
        unit: Unit,
        goal: Goal,
        samples: &[[Vec<Sample>; 3]],
        index: usize,
    ) -> Self {
        let label = label.into();
        Self {
            short: label.clone(),
            label,
            unit,
            counts: Counts::Median,
            goal,
            samples: samples.get(index).cloned().unwrap_or_default(),
            note: String::new(),
        }
    }

    /// Names it more shortly, for the picture.
    pub fn short(self, short: impl Into<String>) -> Self {
        Self { short: short.into(), ..self }
    }

    /// Counts only each server's best turn.
    pub fn best(self) -> Self {
        Self { counts: Counts::Best, ..self }
    }

    /// Says what has to be known to read it.
    pub fn note(self, note: String) -> Self {
        Self { note, ..self }
    }

    /// The number of a server.
    pub fn value(&self, kind: Kind) -> f64 {
        let values = self.samples_of(kind).iter().map(|sample| sample.value);
        match self.counts {
            Counts::Median => median(values),
            Counts::Best if self.unit.more_is_better() => values.fold(f64::NAN, f64::max),
            Counts::Best => values.fold(f64::NAN, f64::min),
        }
    }

    /// The lowest and the highest number of a server.
    pub fn range(&self, kind: Kind) -> (f64, f64) {
        let values = || self.samples_of(kind).iter().map(|sample| sample.value);
        (values().fold(f64::NAN, f64::min), values().fold(f64::NAN, f64::max))
    }

    pub fn samples_of(&self, kind: Kind) -> &[Sample] {
        &self.samples[kind.index()]
    }

    /// What ours is compared with.
    fn reference(&self) -> f64 {
        let (plain, tuned) = (self.value(Kind::Nginx), self.value(Kind::NginxTuned));
        let better = if self.unit.more_is_better() { plain.max(tuned) } else { plain.min(tuned) };
        match self.goal {
            Goal::TimesNginx(_) | Goal::AtMost(_) => better,
            Goal::TimesTuned(_) => tuned,
            Goal::TimesNginxPlus { plus, .. } => better + plus,
        }
    }

    /// Ours divided by what it is compared with.
    pub fn ratio(&self) -> f64 {
        self.value(Kind::NixStored) / self.reference()
    }

    /// The ratio turned so that more is better.
    pub fn advantage(&self) -> f64 {
        if self.unit.more_is_better() { self.ratio() } else { 1.0 / self.ratio() }
    }

    pub fn met(&self) -> bool {
        let ours = self.value(Kind::NixStored);
        match self.goal {
            Goal::AtMost(most) => ours <= most,
            Goal::TimesNginx(times)
            | Goal::TimesTuned(times)
            | Goal::TimesNginxPlus { times, .. } => {
                let bound = times * self.reference();
                if self.unit.more_is_better() { ours >= bound } else { ours <= bound }
            }
        }
    }

    /// The goal in words.
    pub fn goal(&self) -> String {
        let sign = if self.unit.more_is_better() { "≥" } else { "≤" };
        match self.goal {
            Goal::TimesNginx(times) => format!("{sign} {times:?} × nginx"),
            Goal::TimesTuned(times) => format!("{sign} {times:?} × nginx-ofc"),
            Goal::TimesNginxPlus { times, what, .. } => {
                format!("{sign} {times:?} × (nginx + {what})")
            }
            Goal::AtMost(most) => format!("{sign} {most} {}", self.unit),
        }
    }
}
