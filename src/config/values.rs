//! The texts of all variables, and the problems found in them. Problems are collected, so that one does
//! not hide another.

use std::borrow::Cow;
use std::collections::HashMap;

use super::problem::{Problem, Problems};

/// The texts of all variables, and the problems found in them.
#[derive(Default)]
pub(super) struct Values {
    variables: HashMap<&'static str, Value>,
    problems: Vec<Problem>,
}

struct Value {
    text: Option<String>,
    example: &'static str,
}

impl Values {
    /// Adds a variable of the table; `text` is its value in the environment.
    pub(super) fn add(&mut self, name: &'static str, example: &'static str, text: Option<String>) {
        self.variables.insert(name, Value { text, example });
    }

    /// The value of a variable; `None` if it is unset. Panics if the table has no such variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables[name].text.as_deref()
    }

    /// Adds a problem with the variable `name`. The reason says what is wrong and what to do.
    pub(super) fn problem(&mut self, name: &str, reason: impl Into<String>) {
        self.problems.push(Problem { variable: name.to_owned(), reason: reason.into() });
    }

    /// Adds the problem that `value` is invalid, with an example. Secrets in URLs are removed.
    pub(super) fn invalid(&mut self, name: &str, value: &str, why: &str) {
        let (value, example) = (without_password(value), self.variables[name].example);
        self.problem(name, format!("“{value}” {why}; for example {name}={example}"));
    }

    /// The number of problems so far.
    pub(super) fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// Returns `result`, or all problems.
    pub(super) fn finish<T>(self, result: T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(result) } else { Err(Problems(self.problems)) }
    }
}

/// Removes user, password and options from a URL that may be invalid. The option `proxy` may also contain
/// a password.
pub(super) fn without_secrets(text: &str) -> String {
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
fn without_password(value: &str) -> Cow<'_, str> {
    match value.contains("://") && (value.contains('@') || value.contains("%40")) {
        true => without_secrets(&value.replace("%40", "@")).into(),
        false => value.into(),
    }
}
