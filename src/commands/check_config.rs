//! `nix-stored check-config`: prints the effective configuration.

use std::fmt;
use std::net::ToSocketAddrs;
use std::process::ExitCode;

use serde::Serialize;

use super::EXIT_USAGE;
use super::output::{Output, duration, in_units};
use crate::config::{
    Config, Listen, PREFIX, Problems, Requirement, Retention, VARIABLES, Verify, Writers,
};
use crate::logging::{LogFormat, LogLevel};

/// Printed in place of a password.
const MASK: &str = "***";

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Needs no cache, but reads the files that the variables name. The comment \
                        after a value is its source.\n\nExit status: 0 the configuration is valid; 64 \
                        the configuration or the arguments are wrong.")]
pub(super) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args, config: Result<Config, Problems>) -> anyhow::Result<ExitCode> {
    match config {
        Ok(config) => {
            let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            args.output.print(&Effective::new(&config, set))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            args.output.refuse(&Wrong::from(problems))?;
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

/// The effective configuration and the access rules that follow from it.
#[derive(Debug, Serialize)]
struct Effective {
    variables: Vec<Setting>,
    may_read: Who,
    may_upload: Who,
    /// Whether clients with a certificate may read and upload.
    certificates_count: bool,
}

#[derive(Debug, Serialize)]
struct Setting {
    name: &'static str,
    /// The value in the syntax of the variable, with passwords masked; `None` if the variable is unset
    /// and has no default.
    value: Option<String>,
    source: Source,
}

/// Source of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Environment,
    /// The file named by the `…FILE` variant of the variable.
    File,
    Default,
}

/// Clients that may read or upload.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Who {
    Anyone,
    /// Anyone on this machine.
    #[serde(rename = "anyone")]
    Local,
    Users(Vec<String>),
    /// Clients with a certificate.
    Certificate,
    Nobody,
}

impl Effective {
    /// `set` looks up a variable in the environment.
    fn new(config: &Config, set: impl Fn(&str) -> Option<String>) -> Self {
        let variables = VARIABLES.iter().filter(|variable| variable.supported).map(|variable| {
            let (name, suffix) = (variable.name, variable.suffix());
            // A variable that `shown` does not handle could be a secret, so it is masked. A test
            // checks that `shown` handles all variables.
            let value = shown(config, suffix, &set).unwrap_or_else(|| Some(MASK.to_owned()));
            let from_file = suffix.ends_with("_PASS") && set(&format!("{name}FILE")).is_some();
            let source = match set(name) {
                Some(_) => Source::Environment,
                None if from_file => Source::File,
                None => Source::Default,
            };
            Setting { name, value, source }
        });
        let access = config.users.access(is_local(&config.listen));
        Self {
            variables: variables.collect(),
            may_read: access.read.into(),
            may_upload: access.write.into(),
            certificates_count: config.users.certificates,
        }
    }
}

/// The value of `NIX_STORED_<suffix>`, or `Some(None)` if it has no value; `None` if this function does
/// not handle the variable.
fn shown(
    config: &Config,
    suffix: &str,
    set: impl Fn(&str) -> Option<String>,
) -> Option<Option<String>> {
    // Without `..`, so that a new field does not compile until it is handled here.
    let Config {
        location,
        listen,
        users,
        log_level,
        log_format,
        cache_info,
        admission,
        min_free_space,
        retention: Retention { max_size, max_age, gc_interval },
        #[cfg(feature = "s3")]
        s3_redirect,
        // Only the names of its files are shown.
        #[cfg(feature = "tls")]
            tls: _,
        #[cfg(feature = "upstream")]
        upstreams,
    } = config;
    let switch = |on| if on { "1" } else { "0" }.to_owned();
    let (read, write) = (users.read.as_ref(), users.write.as_ref());
    Some(match suffix {
        "PATH" => Some(location.to_string()),
        "LISTEN_INTERFACE" => Some(listen.to_string()),
        "USER_READ" => read.map(|user| user.user().to_owned()),
        "USER_WRITE" => write.map(|user| user.user().to_owned()),
        "USER_READ_PASS" => read.map(|_| MASK.to_owned()),
        "USER_WRITE_PASS" => write.map(|_| MASK.to_owned()),
        // The path of a secret file is not secret.
        "USER_READ_PASSFILE"
        | "USER_WRITE_PASSFILE"
        | "UPSTREAM_NETRC"
        | "TLS_CERT"
        | "TLS_KEY"
        | "TLS_CLIENT_CA" => set(&format!("{PREFIX}{suffix}")),
        "ANONYMOUS_WRITE" => match users.anonymous {
            Writers::LocalOnly => None,
            Writers::Anyone => Some(switch(true)),
            Writers::Nobody => Some(switch(false)),
        },
        "LOG_LEVEL" => Some(log_level_name(*log_level).to_owned()),
        "LOG_FORMAT" => Some(log_format_name(*log_format).to_owned()),
        "STORE_DIR" => Some(cache_info.store_dir.to_string()),
        "PRIORITY" => Some(cache_info.priority.to_string()),
        "WANT_MASS_QUERY" => Some(switch(cache_info.want_mass_query)),
        "TRUSTED_PUBLIC_KEYS" => {
            let keys: Vec<String> =
                admission.trusted_public_keys.iter().map(ToString::to_string).collect();
            (!keys.is_empty()).then(|| keys.join(" "))
        }
        "VERIFY" => Some(verify_name(admission.verify).to_owned()),
        "REQUIRE_REFERENCES" => Some(switch(admission.require_references)),
        "MAX_UPLOAD_SIZE" => admission.max_upload_size.map(size),
        "MIN_FREE_SPACE" => Some(size(*min_free_space)),
        "MAX_SIZE" => max_size.map(size),
        "MAX_AGE" => max_age.map(duration),
        "GC_INTERVAL" => Some(duration(*gc_interval)),
        #[cfg(feature = "s3")]
        "S3_REDIRECT" => Some(switch(*s3_redirect)),
        #[cfg(feature = "upstream")]
        "UPSTREAMS" => {
            let list: Vec<String> =
                upstreams.list.iter().map(crate::config::Upstream::masked).collect();
            (!list.is_empty()).then(|| list.join(" "))
        }
        #[cfg(feature = "upstream")]
        "UPSTREAM_ABSENT_TTL" => Some(duration(upstreams.absent_ttl)),
        #[cfg(feature = "upstream")]
        "UPSTREAM_PRESENT_TTL" => Some(duration(upstreams.present_ttl)),
        _ => return None,
    })
}

fn log_level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

fn log_format_name(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

fn verify_name(verify: Verify) -> &'static str {
    match verify {
        Verify::File => "file",
        Verify::Nar => "nar",
    }
}

/// A size in the syntax of a variable.
fn size(bytes: u64) -> String {
    in_units(bytes, &[(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")], "")
}

/// Whether the socket will be reachable only from this machine. Host names are resolved.
fn is_local(listen: &Listen) -> bool {
    match listen {
        Listen::Unix { .. } => true,
        Listen::Tcp(address) => address
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback())),
    }
}

impl From<Requirement> for Who {
    fn from(requirement: Requirement) -> Self {
        match requirement {
            Requirement::Anyone => Self::Anyone,
            Requirement::Local => Self::Local,
            Requirement::User(users) => {
                Self::Users(users.iter().map(|user| user.user().to_owned()).collect())
            }
            Requirement::Certificate => Self::Certificate,
            Requirement::Nobody => Self::Nobody,
        }
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Setting { name, value, source } in &self.variables {
            write!(f, "{name}={}", value.as_deref().unwrap_or_default())?;
            match source {
                Source::Environment => writeln!(f)?,
                Source::File => writeln!(f, "  # from {name}FILE")?,
                Source::Default => writeln!(f, "  # default")?,
            }
        }
        writeln!(f, "# {} may read", self.may_read)?;
        let from = if self.may_upload == Who::Local { " from this machine" } else { "" };
        writeln!(f, "# {} may upload{from}", self.may_upload)?;
        if self.certificates_count {
            writeln!(f, "# clients with a certificate may read and upload")?;
        }
        Ok(())
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone | Self::Local => f.write_str("anyone"),
            Self::Users(users) => write!(f, "the user {}", users.join(" or ")),
            Self::Certificate => f.write_str("clients with a certificate"),
            Self::Nobody => f.write_str("nobody"),
        }
    }
}

/// Configuration errors that keep the daemon from starting.
#[derive(Debug, Serialize)]
struct Wrong {
    problems: Vec<WrongVariable>,
}

#[derive(Debug, Serialize)]
struct WrongVariable {
    name: String,
    reason: String,
}

impl From<Problems> for Wrong {
    fn from(problems: Problems) -> Self {
        let wrong = |problem: crate::config::Problem| WrongVariable {
            name: problem.variable,
            reason: problem.reason,
        };
        Self { problems: problems.0.into_iter().map(wrong).collect() }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|wrong| writeln!(f, "{}: {}", wrong.name, wrong.reason))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn effective(vars: &HashMap<String, String>) -> (Config, Effective) {
        let config = Config::from_vars(vars.clone()).unwrap();
        let effective = Effective::new(&config, |name| vars.get(name).cloned());
        (config, effective)
    }

    #[test]
    fn every_variable_is_shown_in_the_order_of_the_table() {
        let config = Config::from_vars([]).unwrap();
        for variable in VARIABLES.iter().filter(|variable| variable.supported) {
            let shown = shown(&config, variable.suffix(), |_| None);
            assert!(shown.is_some(), "check-config does not know {}", variable.name);
        }
        let (_, effective) = effective(&HashMap::new());
        let names = effective.variables.iter().map(|setting| setting.name);
        let supported = VARIABLES.iter().filter(|variable| variable.supported);
        assert!(names.eq(supported.map(|variable| variable.name)));
        assert!(effective.variables.iter().all(|setting| setting.source == Source::Default));
    }

    #[test]
    fn what_is_shown_means_the_same_again() {
        // The examples of the table, passwords without files, and numbers that are not round.
        let mut vars: HashMap<String, String> = VARIABLES
            .iter()
            .filter(|variable| variable.supported)
            // These name files, which do not exist here.
            .filter(|variable| {
                let files = ["PASSFILE", "_NETRC", "_TLS_CERT", "_TLS_KEY", "_CLIENT_CA"];
                !files.iter().any(|end| variable.name.ends_with(end))
            })
            .map(|variable| (variable.name.to_owned(), variable.example.to_owned()))
            .collect();
        vars.insert("NIX_STORED_MAX_UPLOAD_SIZE".to_owned(), "1025".to_owned());
        vars.insert("NIX_STORED_MIN_FREE_SPACE".to_owned(), "0".to_owned());
        vars.insert("NIX_STORED_GC_INTERVAL".to_owned(), "90m".to_owned());
        let (config, effective) = effective(&vars);
        let again = effective.variables.into_iter().filter_map(|setting| {
            let shown = setting.value?;
            let variable = vars.get(setting.name)?;
            assert_eq!(shown == MASK, setting.name.ends_with("_PASS"), "{}", setting.name);
            let value = if shown == MASK { variable.clone() } else { shown };
            Some((setting.name.to_owned(), value))
        });
        let again = Config::from_vars(again).unwrap();
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
    }

    #[test]
    fn who_may_upload_depends_on_the_socket() {
        let who = |listen: &str| {
            let vars = [("NIX_STORED_LISTEN_INTERFACE".to_owned(), listen.to_owned())];
            effective(&vars.into_iter().collect()).1.may_upload
        };
        assert_eq!(who("127.0.0.1:0"), Who::Local);
        assert_eq!(who("[::1]:0"), Who::Local);
        assert_eq!(who("unix:/run/x"), Who::Local);
        assert_eq!(who("0.0.0.0:0"), Who::Nobody);
    }
}
