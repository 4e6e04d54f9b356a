//! Errors on one line.

use std::error::Error;

/// An error with all its causes on one line, separated by colons. The message of some errors ends with the
/// message of the cause; it is not repeated.
pub fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("the disk is full")]
    struct Root;

    #[derive(Debug, Error)]
    #[error("cannot write")]
    struct Plain(#[source] Root);

    #[derive(Debug, Error)]
    #[error("cannot write: {0}")]
    struct Telling(#[source] Root);

    #[test]
    fn every_cause_is_told_once() {
        assert_eq!(with_causes(&Root), "the disk is full");
        assert_eq!(with_causes(&Plain(Root)), "cannot write: the disk is full");
        assert_eq!(with_causes(&Telling(Root)), "cannot write: the disk is full");
    }
}
