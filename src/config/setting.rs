//! The columns of the table of settings.

use super::typed::Config;
use super::values::Values;

/// An environment variable: a row of [`SETTINGS`](super::SETTINGS).
#[derive(Debug)]
pub struct Setting {
    /// Complete name.
    pub name: &'static str,
    /// Value of an unset variable, in the syntax of the variable; `None`: the field of [`Config`] stays
    /// empty.
    pub default: Option<&'static str>,
    /// A valid value, for error messages.
    pub example: &'static str,
    /// Meaning of the variable in Markdown, for the README and the man page: a noun phrase, or what `1`
    /// does; no full stop.
    pub doc: &'static str,
    /// Cargo feature that a build needs to support the variable; `None`: every build supports it.
    pub feature: Option<Feature>,
    /// Error if the variable is set but empty; `None`: it then counts as unset. An error is right where
    /// a failed command substitution would weaken security.
    pub(super) if_empty: Option<&'static str>,
    /// How the value gets into [`Config`].
    pub(super) parse: Parse,
    /// How `check-config` prints the value.
    pub(super) show: Show,
}

/// A cargo feature that adds variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `s3`
    S3,
    /// `tls`
    Tls,
    /// `upstream`
    Upstream,
}

impl Feature {
    const fn is_enabled(self) -> bool {
        match self {
            Self::S3 => cfg!(feature = "s3"),
            Self::Tls => cfg!(feature = "tls"),
            Self::Upstream => cfg!(feature = "upstream"),
        }
    }
}

/// How the value of a variable gets into [`Config`]. Functions return the reason why a value is invalid:
/// the rest of a sentence that begins with the value in quotes.
#[derive(Debug)]
pub(super) enum Parse {
    /// Parses the text of the variable, or its default.
    Text(fn(&mut Config, &str) -> Result<(), String>),
    /// The same for each word of the text; words are separated by white space.
    List(fn(&mut Config, &str) -> Result<(), String>),
    /// Parses several variables that make one value, most with the help of files. SIGHUP parses them
    /// again.
    Group(fn(&mut Config, &mut Values)),
    /// The variable is parsed by the group above it in the table.
    InGroup,
    /// This build does not support the variable.
    Unsupported,
}

/// How `check-config` prints the value of a variable.
#[derive(Debug)]
pub(super) enum Show {
    /// In the syntax of the variable, with passwords masked; `None`: no value.
    Value(fn(&Config) -> Option<String>),
    /// Masked: the function returns whether there is a value.
    Secret(fn(&Config) -> bool),
    /// As in the environment: the variable is the name of a file.
    AsSet,
}

/// Printed in place of a secret.
const MASK: &str = "***";

impl Setting {
    /// Values for the columns that most rows leave out.
    pub(super) const BASE: Self = Self {
        name: "",
        default: None,
        example: "",
        doc: "",
        feature: None,
        if_empty: None,
        parse: Parse::Unsupported,
        show: Show::AsSet,
    };

    /// Whether this build supports the variable. Setting an unsupported one is an error: running without
    /// TLS, for example, must not go unnoticed.
    pub fn is_supported(&self) -> bool {
        self.feature.is_none_or(Feature::is_enabled)
    }

    /// Whether the value is never printed.
    pub fn is_secret(&self) -> bool {
        matches!(self.show, Show::Secret(_))
    }

    /// The value in `config`, in the syntax of the variable, with secrets masked; `None` if the variable
    /// is unset and has no default. `set` looks up a variable in the environment.
    pub fn shown(&self, config: &Config, set: impl Fn(&str) -> Option<String>) -> Option<String> {
        match self.show {
            Show::Value(show) => show(config),
            Show::Secret(is_set) => is_set(config).then(|| MASK.to_owned()),
            Show::AsSet => set(self.name),
        }
    }

    /// Parses the value into `config`. An invalid value becomes a problem of `values`.
    pub(super) fn parse(&self, config: &mut Config, values: &mut Values) {
        let text = values.get(self.name).or(self.default).map(str::to_owned);
        match (&self.parse, text) {
            (Parse::Text(parse), Some(text)) => {
                if let Err(why) = parse(config, &text) {
                    values.invalid(self.name, &text, &why);
                }
            }
            (Parse::List(parse), Some(text)) => {
                for word in text.split_whitespace() {
                    if let Err(why) = parse(config, word) {
                        values.invalid(self.name, word, &why);
                    }
                }
            }
            (Parse::Group(parse), _) => parse(config, values),
            (Parse::Text(_) | Parse::List(_), None) | (Parse::InGroup | Parse::Unsupported, _) => {}
        }
    }
}
