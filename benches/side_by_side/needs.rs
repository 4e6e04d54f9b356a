//! The programs and limits that the comparison needs.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The programs in the comparison.
#[derive(Debug)]
pub struct Programs {
    pub nginx: PathBuf,
    /// For the cost of the digest in another program.
    pub sha256sum: PathBuf,
}

impl Programs {
    /// Finds the programs. An error names the Debian packages of missing ones.
    pub fn find(nix: bool) -> anyhow::Result<Self> {
        let wanted: &[(&str, &str)] = &[("nginx", "nginx-core"), ("sha256sum", "coreutils")];
        let for_copies: &[(&str, &str)] = &[("nix", "nix-bin"), ("nix-store", "nix-bin")];
        let all = wanted.iter().chain(if nix { for_copies } else { &[] });
        let missing: Vec<String> = all
            .filter(|(program, _)| find(program).is_none())
            .map(|(program, package)| format!("{program} (Debian package {package})"))
            .collect();
        match (find("nginx"), find("sha256sum")) {
            (Some(nginx), Some(sha256sum)) if missing.is_empty() => Ok(Self { nginx, sha256sum }),
            _ => bail!("needs {}", missing.join(", ")),
        }
    }
}

/// The path of a program. Debian installs servers in directories that are only in root's `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(|dir| Path::new(dir).to_owned()))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Raises the limit of open files to its maximum, and returns it.
pub fn raise_open_files() -> anyhow::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
