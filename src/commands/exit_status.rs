//! Exit statuses.

/// The exit statuses that all commands share, for `--help`.
pub(super) const EXIT_STATUSES: &str = "Exit status: 0 done; 1 failed; 2 negative result (see the \
                                        --help of each command); 64 the configuration or the \
                                        arguments are wrong.";

/// Negative result, such as damage found by `verify`.
pub(super) const EXIT_NO: u8 = 2;

/// The configuration or the arguments are wrong: `EX_USAGE` of sysexits(3).
pub(super) const EXIT_USAGE: u8 = 64;
