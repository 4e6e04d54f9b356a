//! HTTPS and HTTP/2 with a private CA, Nix, and misbehaving clients.

/// Client certificates as credentials.
mod clients;
/// Errors in certificates and keys at start.
mod config;
/// The command `health`.
mod health;
/// An unmodified Nix.
mod nix;
/// New certificates on SIGHUP.
mod reload;
/// Content and refusals in both HTTP versions.
mod serving;
/// Slow clients.
mod slow;
/// Clients that read nothing or almost nothing of the responses.
mod unread_responses;

use std::process::{Command, Stdio};

use crate::support::certificates::{Authority, CertFiles};
use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;

/// A daemon with this certificate.
fn showing(issued: &CertFiles) -> Builder {
    Daemon::builder()
        .env("NIX_STORED_TLS_CERT", utf8(&issued.cert))
        .env("NIX_STORED_TLS_KEY", utf8(&issued.key))
}

/// A daemon with a certificate for its address, issued by this CA.
fn signed_by(authority: &Authority) -> Builder {
    showing(&authority.server("127.0.0.1"))
}

/// The result of a curl command.
#[derive(Debug)]
struct CurlResult {
    /// 0 if there was no response.
    status: u16,
    /// `1.1` or `2`
    version: String,
    body: Vec<u8>,
    /// The error message of curl.
    error: String,
}

impl CurlResult {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {}", self.text(), self.error);
        self
    }
}

/// Sends a request with curl, which trusts this CA.
#[track_caller]
fn curl(authority: &Authority, url: &str, args: &[&str]) -> CurlResult {
    let output = curl_command(authority, url, args).output().expect("curl is installed");
    parse_output(&output)
}

fn curl_command(authority: &Authority, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        // Without the user's configuration and without a proxy.
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

fn parse_output(output: &std::process::Output) -> CurlResult {
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let (error, summary) = printed.rsplit_once('\n').unwrap_or(("", &printed));
    let (version, status) = summary.rsplit_once(' ').expect("the format of --write-out");
    CurlResult {
        status: status.parse().expect("a number"),
        version: version.to_owned(),
        body: output.stdout.clone(),
        error: error.to_owned(),
    }
}
