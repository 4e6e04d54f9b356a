//! Errors on one line.

use std::error::Error;

/// Returns an error and its causes on one line, separated by colons. A cause that ends the message of its
/// error is not repeated. Events have it as `error = %with_causes(&error)`.
pub(crate) fn with_causes(error: &dyn Error) -> String {
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
    struct DiskFull;

    #[derive(Debug, Error)]
    #[error("cannot write")]
    struct Plain(#[source] DiskFull);

    #[derive(Debug, Error)]
    #[error("cannot write: {0}")]
    struct WithCause(#[source] DiskFull);

    #[test]
    fn each_cause_is_printed_once() {
        assert_eq!(with_causes(&DiskFull), "the disk is full");
        assert_eq!(with_causes(&Plain(DiskFull)), "cannot write: the disk is full");
        assert_eq!(with_causes(&WithCause(DiskFull)), "cannot write: the disk is full");
    }
}
