//! Output of the commands: human-readable text, or one JSON document.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::SystemTime;

use anyhow::Context;
use indicatif::{BinaryBytes, HumanFloatCount};
use serde::{Serialize, Serializer};

use crate::logging::{MAX_LINE, printable, printable_json};

/// Output format.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Output {
    /// Print one JSON document: sizes in bytes, times in RFC 3339 format
    #[arg(long)]
    pub json: bool,
}

impl Output {
    /// Prints a result to standard output.
    pub(super) fn print(self, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        self.write(io::stdout().lock(), result)
    }

    /// Prints the reasons for a refusal: JSON to standard output, text to standard error.
    pub(super) fn refuse(self, reasons: &(impl Serialize + Display)) -> anyhow::Result<()> {
        if self.json {
            self.write(io::stdout().lock(), reasons)
        } else {
            self.write(io::stderr().lock(), reasons)
        }
    }

    fn write(self, to: impl Write, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        if !self.json {
            return write(to, &result.to_string());
        }
        let json = serde_json::to_string_pretty(result);
        let json = json.context("the result cannot be written as JSON")?;
        write_raw(to, &(printable_json(&json) + "\n"))
    }
}

/// Prints human-readable text, with control characters escaped: lines may contain untrusted text.
pub(super) fn write(to: impl Write, text: &str) -> anyhow::Result<()> {
    let lines: Vec<_> = text.split('\n').map(|line| printable(line, MAX_LINE)).collect();
    write_raw(to, &lines.join("\n"))
}

/// Untrusted text on one line, with line breaks and control characters escaped.
pub(super) struct OneLine<T>(pub T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0.to_string(), MAX_LINE))
    }
}

fn write_raw(mut to: impl Write, text: &str) -> anyhow::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        // A reader such as `head` may close the pipe early.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("the result cannot be printed"),
    }
}

/// A human-readable number of bytes, such as `1.21 GiB`.
pub(super) fn size(bytes: u64) -> impl Display {
    BinaryBytes(bytes)
}

/// `1 path`, `1,234 paths`.
pub(super) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", HumanFloatCount(number as f64))
}

/// A time in RFC 3339 format.
pub(super) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// For `#[serde(serialize_with)]`: a time in RFC 3339 format.
pub(super) fn serialize_time<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&time(*at))
}
