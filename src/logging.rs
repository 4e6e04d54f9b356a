//! The log on standard error, as readable text or as JSON.

mod causes;
mod lines;
mod printable;

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub(crate) use causes::with_causes;
pub(crate) use printable::{printable, printable_json};

use lines::{JsonLines, TextFields};

/// Maximum length of a line that a command prints, in bytes.
pub(crate) const MAX_LINE: usize = 8 * 1024;

/// Minimum level of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Problems that need attention.
    Warn,
    /// Changes: uploads, refusals, start and stop.
    Info,
    /// All requests.
    Debug,
    /// All events, including those of the libraries.
    Trace,
}

impl FromStr for LogLevel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err("is not error, warn, info, debug or trace"),
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// A JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("is not text or json"),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Starts logging to standard error, for the lifetime of the process.
pub(crate) fn init(level: LogLevel, format: LogFormat) {
    // The journal records the time itself.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_max_level(Level::from(level))
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        // A closed standard error must not end the daemon: reporting the failure would write to standard
        // error again, and panic.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let libraries = match level {
        // At `debug` the log has every request. The libraries would add every HTTP/2 frame.
        LogLevel::Debug => LevelFilter::INFO,
        level => Level::from(level).into(),
    };
    let filter =
        Targets::new().with_default(libraries).with_target("nix_stored", Level::from(level));
    match format {
        LogFormat::Json => {
            builder.event_format(JsonLines).finish().with(filter).init();
        }
        LogFormat::Text => {
            let builder = builder.fmt_fields(TextFields);
            match in_journal {
                true => builder.without_time().finish().with(filter).init(),
                false => builder.with_timer(SystemTime).finish().with(filter).init(),
            }
        }
    }
}
