//! HTTPS and HTTP/2 with a private CA, Nix, and misbehaving clients.

/// Client certificates.
mod clients;
/// What is wrong with certificates and keys, told at start.
mod config;
/// Whether the daemon is well, asked by itself.
mod health;
/// A real, unmodified Nix.
mod nix;
/// Another certificate while the daemon runs.
mod reload;
/// The right bytes, and the right refusals, over both versions of HTTP.
mod serving;
/// Clients that take their time.
mod slow;
/// Clients that take nothing of their answers, or next to nothing.
mod untaken;

use std::process::{Command, Stdio};

use crate::support::certificates::{Authority, Issued};
use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;

/// A daemon that shows this certificate.
fn showing(issued: &Issued) -> Builder {
    Daemon::builder()
        .env("NIX_STORED_TLS_CERT", utf8(&issued.cert))
        .env("NIX_STORED_TLS_KEY", utf8(&issued.key))
}

/// A daemon with a certificate for its address, by this authority.
fn signed_by(authority: &Authority) -> Builder {
    showing(&authority.server("127.0.0.1"))
}

/// What curl got.
#[derive(Debug)]
struct Got {
    /// 0 if there was no answer.
    status: u16,
    /// `1.1` or `2`
    version: String,
    body: Vec<u8>,
    /// What curl has to say.
    error: String,
}

impl Got {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {}", self.text(), self.error);
        self
    }
}

/// One request by curl, which believes this authority.
#[track_caller]
fn curl(authority: &Authority, url: &str, args: &[&str]) -> Got {
    let output = curl_command(authority, url, args).output().expect("curl is installed");
    got(&output)
}

fn curl_command(authority: &Authority, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        // No configuration of the user's, and no proxy.
        .args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "120"])
        .args([
            "--cacert",
            authority.file(),
            "--write-out",
            "%{stderr}%{http_version} %{http_code}",
        ])
        .args(args)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn got(output: &std::process::Output) -> Got {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (error, summary) = said.rsplit_once('\n').unwrap_or(("", &said));
    let (version, status) = summary.rsplit_once(' ').expect("as --write-out says");
    Got {
        status: status.parse().expect("a number"),
        version: version.to_owned(),
        body: output.stdout.clone(),
        error: error.to_owned(),
    }
}
