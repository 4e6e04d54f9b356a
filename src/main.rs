//! `nix-stored`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    nix_stored::commands::run(std::env::args_os())
}
