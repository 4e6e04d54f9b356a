//! Parsers for the values of variables. They collect errors instead of stopping at the first one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Credentials, PREFIX, Problem, Problems, VARIABLES};
use crate::nix::PublicKey;

/// Address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `host:port` or `[v6]:port`; with port 0, the kernel chooses a free port.
    Tcp(String),
    /// `unix:/path`, or `unix:/path?mode=0660`
    Unix {
        /// File of the socket.
        path: PathBuf,
        /// Permissions of the file; `None`: as the umask allows.
        mode: Option<u32>,
    },
}

impl Default for Listen {
    fn default() -> Self {
        Self::Tcp("127.0.0.1:8100".to_owned())
    }
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let (path, mode) = match path.split_once('?') {
                Some((path, options)) => (path, Some(socket_mode(options)?)),
                None => (path, None),
            };
            if !path.starts_with('/') {
                return Err("has no absolute path after “unix:”");
            }
            return Ok(Self::Unix { path: path.into(), mode });
        }
        let (host, port) =
            text.rsplit_once(':').ok_or("is not host:port, [v6]:port or unix:/path")?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() {
            Err("has no host before the port; use 0.0.0.0 or [::] for all addresses")
        } else if host.contains(':') && !bracketed {
            Err("has an IPv6 address without brackets")
        } else if port.parse::<u16>().is_err() {
            Err("has no port from 0 to 65535 at the end")
        } else {
            Ok(Self::Tcp(text.to_owned()))
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix { path, mode: None } => write!(f, "unix:{}", path.display()),
            Self::Unix { path, mode: Some(mode) } => {
                write!(f, "unix:{}?mode={mode:04o}", path.display())
            }
        }
    }
}

/// Parses `mode=0660`, the only option of a socket.
fn socket_mode(options: &str) -> Result<u32, &'static str> {
    let mode = options.strip_prefix("mode=").and_then(|mode| u32::from_str_radix(mode, 8).ok());
    mode.filter(|mode| *mode <= 0o777)
        .ok_or("has an invalid option after “?”; use a mode in octal digits, such as mode=0660")
}

/// Parses raw values into typed ones. An invalid value adds a [`Problem`] and yields the default.
#[derive(Default)]
pub(super) struct Parser {
    problems: Vec<Problem>,
}

impl Parser {
    /// Adds an error about `NIX_STORED_<suffix>`.
    pub(super) fn problem(&mut self, suffix: &str, reason: impl Into<String>) {
        self.problems
            .push(Problem { variable: format!("{PREFIX}{suffix}"), reason: reason.into() });
    }

    /// Adds an error about `value`, with the example of the table.
    fn unusable(&mut self, suffix: &str, value: &str, why: &str) {
        let example = VARIABLES
            .iter()
            .find(|variable| variable.suffix() == suffix)
            .map_or("", |variable| variable.example);
        let value = without_password(value);
        self.problem(suffix, format!("“{value}” {why}; for example {PREFIX}{suffix}={example}"));
    }

    /// Parses a value of a type that implements [`FromStr`].
    pub(super) fn parsed<T>(&mut self, suffix: &str, value: Option<String>, default: T) -> T
    where
        T: FromStr<Err: Explain>,
    {
        match value.as_deref().map(|text| (text, text.parse())) {
            None => default,
            Some((_, Ok(parsed))) => parsed,
            Some((text, Err(error))) => {
                self.unusable(suffix, text, &error.explain());
                default
            }
        }
    }

    /// Parses `1` or `0`, `true` or `false`, `yes` or `no`, `on` or `off`.
    pub(super) fn switch(&mut self, suffix: &str, value: Option<String>) -> Option<bool> {
        let text = value?;
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Some(true),
            "0" | "false" | "no" | "off" => Some(false),
            _ => {
                self.unusable(suffix, &text, "is neither 1 nor 0");
                None
            }
        }
    }

    /// Parses a size with [`parse_size`].
    pub(super) fn size(&mut self, suffix: &str, value: Option<String>) -> Option<u64> {
        let text = value?;
        let bytes = parse_size(&text);
        if let Err(why) = bytes {
            self.unusable(suffix, &text, why);
        }
        bytes.ok()
    }

    /// Parses a duration with [`parse_duration`].
    pub(super) fn duration(&mut self, suffix: &str, value: Option<String>) -> Option<Duration> {
        let text = value?;
        let duration = parse_duration(&text);
        if let Err(why) = duration {
            self.unusable(suffix, &text, why);
        }
        duration.ok()
    }

    /// Parses public keys separated by white space.
    pub(super) fn public_keys(&mut self, value: Option<String>) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        if value.as_deref().is_some_and(|text| text.trim().is_empty()) {
            self.unusable(
                "TRUSTED_PUBLIC_KEYS",
                "",
                "contains no key, which would turn off signature checks; unset the variable if you want \
                 that",
            );
        }
        for text in value.as_deref().unwrap_or_default().split_whitespace() {
            match text.parse() {
                Ok(key) => keys.push(key),
                Err(_) => self.unusable(
                    "TRUSTED_PUBLIC_KEYS",
                    text,
                    "is not a public key as `nix key convert-secret-to-public` prints it",
                ),
            }
        }
        keys
    }

    /// Parses upstreams separated by white space, with passwords from the netrc file.
    #[cfg(feature = "upstream")]
    pub(super) fn upstreams(
        &mut self,
        value: Option<String>,
        netrc: Option<String>,
    ) -> Vec<super::Upstream> {
        let netrc = match netrc.map(|path| (std::fs::read_to_string(&path), path)) {
            None => super::netrc::Netrc::default(),
            Some((Ok(text), _)) => super::netrc::Netrc::parse(&text),
            Some((Err(error), path)) => {
                self.problem("UPSTREAM_NETRC", format!("cannot read “{path}”: {error}"));
                super::netrc::Netrc::default()
            }
        };
        let mut upstreams = Vec::new();
        for text in value.as_deref().unwrap_or_default().split_whitespace() {
            match super::Upstream::parse(text, &netrc) {
                Ok(upstream) => upstreams.push(upstream),
                // The URL may contain a password.
                Err(why) => self.unusable("UPSTREAMS", &without_secrets(text), &why),
            }
        }
        upstreams
    }

    /// The user for `what` (`READ` or `WRITE`), with the password from `…_PASS` or `…_PASSFILE`.
    pub(super) fn credentials(
        &mut self,
        what: &str,
        user: Option<String>,
        pass: Option<String>,
        passfile: Option<String>,
    ) -> Option<Credentials> {
        let name = format!("USER_{what}");
        let password = match (pass, passfile) {
            (Some(_), Some(_)) => {
                self.problem(
                    &format!("{name}_PASS"),
                    format!("conflicts with {PREFIX}{name}_PASSFILE; set only one of them"),
                );
                return None;
            }
            (Some(pass), None) => Some(pass),
            (None, Some(file)) => Some(self.password_file(&format!("{name}_PASSFILE"), &file)?),
            (None, None) => None,
        };
        match (user, password) {
            (None, None) => None,
            (Some(user), Some(_)) if user.contains(':') => {
                self.problem(&name, format!("“{user}” contains a colon, which Basic auth forbids"));
                None
            }
            (Some(user), Some(password)) => Some(Credentials::new(user, &password)),
            (Some(_), None) => {
                self.problem(
                    &name,
                    format!(
                        "the user has no password; set {PREFIX}{name}_PASSFILE to a file that \
                         contains it, or set {PREFIX}{name}_PASS"
                    ),
                );
                None
            }
            (None, Some(_)) => {
                self.problem(
                    &name,
                    "a password is set, but no user; for example NIX_STORED_USER_WRITE=builder"
                        .replace("WRITE", what),
                );
                None
            }
        }
    }

    fn password_file(&mut self, suffix: &str, file: &str) -> Option<String> {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let password = text.strip_suffix('\n').unwrap_or(&text);
                if password.is_empty() {
                    self.problem(suffix, format!("the file {file} is empty"));
                    return None;
                }
                Some(password.to_owned())
            }
            Err(error) => {
                self.problem(suffix, format!("cannot read {file}: {error}"));
                None
            }
        }
    }

    /// Replaces `value` with the result of `read`, unless `read` adds an error.
    pub(super) fn replace<T>(&mut self, value: &mut T, read: impl FnOnce(&mut Self) -> T) {
        let problems = self.problems.len();
        let new = read(self);
        if self.problems.len() == problems {
            *value = new;
        }
    }

    /// Returns `config`, or all errors.
    pub(super) fn finish<T>(self, config: T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(config) } else { Err(Problems(self.problems)) }
    }
}

/// Parses a number of bytes: a whole number, optionally with a unit `K`, `M`, `G` or `T` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    let (number, unit) = number_and_unit(text);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let bytes = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    bytes.ok_or("is not a whole number of bytes, optionally with a unit K, M, G or T")
}

/// Parses a duration: a positive whole number with a unit `s`, `m`, `h`, `d` or `w`.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let (number, unit) = number_and_unit(text);
    let unit = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        "w" => Some(7 * 86_400),
        _ => None,
    };
    let seconds = number.zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds > 0);
    seconds.map(Duration::from_secs).ok_or("is not a whole number with a unit s, m, h, d or w")
}

fn number_and_unit(text: &str) -> (Option<u64>, &str) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    (plain.then(|| digits.parse().ok()).flatten(), &text[digits.len()..])
}

/// Removes user, password and options from a URL that may be invalid. The option `proxy` may also contain
/// a password.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['@', '?']) => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    match rest.split_once('?') {
        Some((rest, _)) => format!("{scheme}{user}{rest}?…"),
        None => format!("{scheme}{user}{rest}"),
    }
}

/// Removes secrets from a value that will be quoted, if it is a URL with an `@`.
fn without_password(value: &str) -> std::borrow::Cow<'_, str> {
    match value.contains("://") && (value.contains('@') || value.contains("%40")) {
        true => without_secrets(&value.replace("%40", "@")).into(),
        false => value.into(),
    }
}

/// A parse error as the rest of a sentence that begins with the value in quotes.
pub(super) trait Explain {
    fn explain(&self) -> String;
}

impl Explain for &'static str {
    fn explain(&self) -> String {
        (*self).to_owned()
    }
}

impl Explain for String {
    fn explain(&self) -> String {
        self.clone()
    }
}

impl Explain for std::num::ParseIntError {
    fn explain(&self) -> String {
        "is not a whole number from 0 to 4294967295".to_owned()
    }
}

impl Explain for crate::nix::store_path::ParseStorePathError {
    fn explain(&self) -> String {
        "is not an absolute path without a trailing “/”".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        for text in [
            "127.0.0.1:8100",
            "[::1]:80",
            "localhost:0",
            "unix:/run/x.sock",
            "unix:/run/x.sock?mode=0660",
            "unix:/run/x.sock?mode=0007",
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "8100",
            ":8100",
            "::1:80",
            "host:",
            "host:99999",
            "unix:x",
            "unix:/x?",
            "unix:/x?mode=",
            "unix:/x?mode=0680",
            "unix:/x?mode=1777",
            "unix:/x?mode=0660&owner=me",
            "unix:/x?owner=me",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
