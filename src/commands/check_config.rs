//! `nix-stored check-config`: prints the effective configuration.

use std::fmt;
use std::net::ToSocketAddrs;
use std::process::ExitCode;

use serde::Serialize;

use super::exit_status::EXIT_USAGE;
use super::output::Output;
use crate::config::{Config, Listen, Problems, Requirement, SETTINGS};

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Needs no cache, but reads the files that the variables name. The comment \
                        after a value is its source.\n\nExit status: 0 the configuration is valid; 64 \
                        the configuration or the arguments are wrong.")]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(
    args: &CheckConfigArgs,
    config: Result<Config, Problems>,
) -> anyhow::Result<ExitCode> {
    match config {
        Ok(config) => {
            let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            args.output.print(&EffectiveConfig::new(&config, set))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            args.output.refuse(&InvalidConfig::from(problems))?;
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

/// The effective configuration and the access rules that follow from it.
#[derive(Debug, Serialize)]
struct EffectiveConfig {
    variables: Vec<EffectiveValue>,
    may_read: AllowedClients,
    may_upload: AllowedClients,
    /// Whether clients with a certificate may read and upload.
    certificates_count: bool,
}

#[derive(Debug, Serialize)]
struct EffectiveValue {
    name: &'static str,
    /// The value in the syntax of the variable, with passwords masked; `None` if the variable is unset
    /// and has no default.
    value: Option<String>,
    source: ValueSource,
}

/// Source of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ValueSource {
    Environment,
    /// The file named by the `…FILE` variant of the variable.
    File,
    Default,
}

/// Clients that may read or upload.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum AllowedClients {
    Anyone,
    /// Anyone on this machine.
    #[serde(rename = "anyone")]
    Local,
    Users(Vec<String>),
    /// Clients with a certificate.
    Certificate,
    Nobody,
}

impl EffectiveConfig {
    /// `set` looks up a variable in the environment.
    fn new(config: &Config, set: impl Fn(&str) -> Option<String>) -> Self {
        let settings = SETTINGS.iter().filter(|setting| setting.is_supported());
        let variables = settings.map(|setting| {
            let name = setting.name;
            let is_file = setting.is_secret() && set(&format!("{name}FILE")).is_some();
            let source = match set(name) {
                Some(_) => ValueSource::Environment,
                None if is_file => ValueSource::File,
                None => ValueSource::Default,
            };
            EffectiveValue { name, value: setting.shown(config, &set), source }
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

/// Whether the socket will be reachable only from this machine. Host names are resolved.
fn is_local(listen: &Listen) -> bool {
    match listen {
        Listen::Unix { .. } => true,
        Listen::Tcp(address) => address
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback())),
    }
}

impl From<Requirement> for AllowedClients {
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

impl fmt::Display for EffectiveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for EffectiveValue { name, value, source } in &self.variables {
            write!(f, "{name}={}", value.as_deref().unwrap_or_default())?;
            match source {
                ValueSource::Environment => writeln!(f)?,
                ValueSource::File => writeln!(f, "  # from {name}FILE")?,
                ValueSource::Default => writeln!(f, "  # default")?,
            }
        }
        writeln!(f, "# {} may read", self.may_read)?;
        let from = if self.may_upload == AllowedClients::Local { " from this machine" } else { "" };
        writeln!(f, "# {} may upload{from}", self.may_upload)?;
        if self.certificates_count {
            writeln!(f, "# clients with a certificate may read and upload")?;
        }
        Ok(())
    }
}

impl fmt::Display for AllowedClients {
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
struct InvalidConfig {
    problems: Vec<InvalidVariable>,
}

#[derive(Debug, Serialize)]
struct InvalidVariable {
    name: String,
    reason: String,
}

impl From<Problems> for InvalidConfig {
    fn from(problems: Problems) -> Self {
        let wrong = |problem: crate::config::Problem| InvalidVariable {
            name: problem.variable,
            reason: problem.reason,
        };
        Self { problems: problems.0.into_iter().map(wrong).collect() }
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|wrong| writeln!(f, "{}: {}", wrong.name, wrong.reason))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn effective(vars: &HashMap<String, String>) -> (Config, EffectiveConfig) {
        let config = Config::from_vars(vars.clone()).unwrap();
        let effective = EffectiveConfig::new(&config, |name| vars.get(name).cloned());
        (config, effective)
    }

    #[test]
    fn every_variable_is_shown_in_the_order_of_the_table() {
        let (_, effective) = effective(&HashMap::new());
        let names = effective.variables.iter().map(|variable| variable.name);
        let supported = SETTINGS.iter().filter(|setting| setting.is_supported());
        assert!(names.eq(supported.map(|setting| setting.name)));
        assert!(effective.variables.iter().all(|variable| variable.source == ValueSource::Default));
    }

    #[test]
    fn a_shown_value_has_the_same_meaning_when_it_is_set() {
        // The examples of the table, passwords without files, and numbers that are not round.
        let mut vars: HashMap<String, String> = SETTINGS
            .iter()
            .filter(|setting| setting.is_supported())
            // These name files, which do not exist here.
            .filter(|setting| {
                let files = ["PASSFILE", "_NETRC", "_TLS_CERT", "_TLS_KEY", "_CLIENT_CA"];
                !files.iter().any(|end| setting.name.ends_with(end))
            })
            .map(|setting| (setting.name.to_owned(), setting.example.to_owned()))
            .collect();
        vars.insert("NIX_STORED_MAX_UPLOAD_SIZE".to_owned(), "1025".to_owned());
        vars.insert("NIX_STORED_MIN_FREE_SPACE".to_owned(), "0".to_owned());
        vars.insert("NIX_STORED_GC_INTERVAL".to_owned(), "90m".to_owned());
        let (config, effective) = effective(&vars);
        let again = effective.variables.into_iter().filter_map(|variable| {
            let (name, shown) = (variable.name, variable.value?);
            let set = vars.get(name)?;
            assert_eq!(shown == "***", name.ends_with("_PASS"), "{name}");
            let value = if shown == "***" { set.clone() } else { shown };
            Some((name.to_owned(), value))
        });
        let again = Config::from_vars(again).unwrap();
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
    }

    #[test]
    fn local_uploads_are_allowed_only_on_local_sockets() {
        let may_upload = |listen: &str| {
            let vars = [("NIX_STORED_LISTEN_INTERFACE".to_owned(), listen.to_owned())];
            effective(&vars.into_iter().collect()).1.may_upload
        };
        assert_eq!(may_upload("127.0.0.1:0"), AllowedClients::Local);
        assert_eq!(may_upload("[::1]:0"), AllowedClients::Local);
        assert_eq!(may_upload("unix:/run/x"), AllowedClients::Local);
        assert_eq!(may_upload("0.0.0.0:0"), AllowedClients::Nobody);
    }
}
