//! A line of the table: the measurements, the goal, and whether it is met.

use std::fmt;

use crate::side_by_side::server::Kind;
use crate::support::sample::{Sample, median};

/// The unit of a line.
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

    /// Formats a number with a useful number of digits.
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

/// Which turns of a server count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    Median,
    /// The same write can take several times as long in one turn as in another, for every server,
    /// so only the best turn is meaningful.
    Best,
}

/// The goal of a line.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// A multiple of the better one of the two nginx.
    TimesNginx(f64),
    /// A multiple of the nginx with `open_file_cache`.
    TimesTuned(f64),
    /// A multiple of the better one of the two nginx, plus a number in the line's unit.
    TimesNginxPlus { times: f64, plus: f64, what: &'static str },
    /// A limit in the line's unit.
    AtMost(f64),
}

/// The measurements of a line.
#[derive(Debug)]
pub struct Line {
    pub label: String,
    /// The label in the image.
    pub short: String,
    pub unit: Unit,
    pub counts: Counts,
    pub goal: Goal,
    /// In the order of [`Kind::ALL`].
    pub samples: [Vec<Sample>; 3],
    /// Information needed to interpret the line.
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

    /// Sets the label in the image.
    pub fn short(self, short: impl Into<String>) -> Self {
        Self { short: short.into(), ..self }
    }

    /// Counts only the best turn of each server.
    pub fn best(self) -> Self {
        Self { counts: Counts::Best, ..self }
    }

    /// Sets the note.
    pub fn note(self, note: String) -> Self {
        Self { note, ..self }
    }

    /// The result of a server.
    pub fn value(&self, kind: Kind) -> f64 {
        let values = self.samples_of(kind).iter().map(|sample| sample.value);
        match self.counts {
            Counts::Median => median(values),
            Counts::Best if self.unit.more_is_better() => values.fold(f64::NAN, f64::max),
            Counts::Best => values.fold(f64::NAN, f64::min),
        }
    }

    /// The lowest and the highest result of a server.
    pub fn range(&self, kind: Kind) -> (f64, f64) {
        let values = || self.samples_of(kind).iter().map(|sample| sample.value);
        (values().fold(f64::NAN, f64::min), values().fold(f64::NAN, f64::max))
    }

    pub fn samples_of(&self, kind: Kind) -> &[Sample] {
        &self.samples[kind.index()]
    }

    /// The number that the daemon is compared with.
    fn reference(&self) -> f64 {
        let (plain, tuned) = (self.value(Kind::Nginx), self.value(Kind::NginxTuned));
        let better = if self.unit.more_is_better() { plain.max(tuned) } else { plain.min(tuned) };
        match self.goal {
            Goal::TimesNginx(_) | Goal::AtMost(_) => better,
            Goal::TimesTuned(_) => tuned,
            Goal::TimesNginxPlus { plus, .. } => better + plus,
        }
    }

    /// The daemon's number divided by the reference.
    pub fn ratio(&self) -> f64 {
        self.value(Kind::NixStored) / self.reference()
    }

    /// The ratio, inverted if less is better.
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
