//! Client certificates as credentials of the write user.

use super::{CurlResult, curl, signed_by};
use crate::support::certificates::{Authority, CertFiles};
use crate::support::daemon::{Builder, Daemon};
use crate::support::nix::utf8;
use crate::support::objects::{Sample, sample};
use crate::support::scratch::Scratch;

struct TlsSetup {
    servers: Authority,
    builders: Authority,
    scratch: Scratch,
}

impl TlsSetup {
    fn new() -> Self {
        Self { servers: Authority::new(), builders: Authority::new(), scratch: Scratch::new() }
    }

    fn daemon(&self) -> Builder {
        signed_by(&self.servers).env("NIX_STORED_TLS_CLIENT_CA", self.builders.file())
    }

    /// Uploads a NAR with this client certificate and more arguments for curl.
    #[track_caller]
    fn put(
        &self,
        daemon: &Daemon,
        sample: &Sample,
        holds: Option<&CertFiles>,
        args: &[&str],
    ) -> CurlResult {
        let file = self.scratch.join("upload");
        std::fs::write(&file, &sample.nar).expect("written");
        self.ask(daemon, &sample.nar_path, holds, &[&["-T", utf8(&file)], args].concat())
    }

    #[track_caller]
    fn ask(
        &self,
        daemon: &Daemon,
        path: &str,
        holds: Option<&CertFiles>,
        args: &[&str],
    ) -> CurlResult {
        let cert = match holds {
            Some(CertFiles { cert, key }) => vec!["--cert", utf8(cert), "--key", utf8(key)],
            None => Vec::new(),
        };
        curl(&self.servers, &format!("{}{path}", daemon.url()), &[&cert, args].concat())
    }
}

#[test]
fn a_client_with_a_certificate_of_the_ca_is_the_write_user() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().start();
    let builder = setup.builders.client("builder-7");
    for (number, version) in [(1, "--http1.1"), (2, "--http2")] {
        let sample = sample(number, version.as_bytes());
        let refused = setup.put(&daemon, &sample, None, &[version]).is(403);
        assert!(refused.text().contains("uploads need a client certificate"), "{refused:?}");
        setup.put(&daemon, &sample, Some(&builder), &[version]).is(201);
        // Without a certificate, reading is allowed because no read user is set.
        assert_eq!(setup.ask(&daemon, &sample.nar_path, None, &[version]).is(200).body, sample.nar);
    }
    let (_, log) = daemon.stop();
    let uploads: Vec<&str> = log.lines().filter(|line| line.contains("uploaded")).collect();
    assert_eq!(uploads.len(), 2, "{log}");
    assert!(uploads.iter().all(|line| line.contains("CN=builder-7")), "{log}");
}

#[test]
fn passwords_work_beside_client_certificates() {
    let setup = TlsSetup::new();
    let daemon = setup
        .daemon()
        .env("NIX_STORED_USER_READ", "reader")
        .env("NIX_STORED_USER_READ_PASS", "r")
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "w")
        .start();
    let (sample, builder) = (sample(1, b"x"), setup.builders.client("builder"));
    setup.put(&daemon, &sample, None, &[]).is(401);
    setup.put(&daemon, &sample, None, &["-u", "reader:r"]).is(403);
    setup.put(&daemon, &sample, None, &["-u", "writer:w"]).is(201);
    setup.put(&daemon, &sample, Some(&builder), &[]).is(200);
    // The certificate takes precedence over a netrc for other purposes.
    setup.put(&daemon, &sample, Some(&builder), &["-u", "reader:r"]).is(200);
    setup.ask(&daemon, &sample.nar_path, None, &[]).is(401);
    setup.ask(&daemon, &sample.nar_path, None, &["-u", "reader:r"]).is(200);
    setup.ask(&daemon, &sample.nar_path, Some(&builder), &[]).is(200);
}

#[test]
fn a_client_certificate_of_another_ca_or_an_expired_one_is_refused() {
    let setup = TlsSetup::new();
    let daemon = setup.daemon().start();
    let other = Authority::new();
    let foreign = other.client("builder");
    let expired = setup.builders.expired_client("builder");
    // A client certificate from the server's CA is not one from the builders' CA.
    let confused = setup.servers.client("builder");
    for holds in [&foreign, &expired, &confused] {
        let refused = setup.put(&daemon, &sample(1, b"x"), Some(holds), &[]);
        assert_eq!(refused.status, 0, "{refused:?}");
        assert!(refused.error.contains("alert"), "{refused:?}");
    }
    let log = daemon.stop().1;
    assert_eq!(log.matches("a TLS handshake failed").count(), 3, "{log}");
}

#[test]
fn without_a_client_ca_no_certificate_is_requested() {
    let setup = TlsSetup::new();
    let daemon = signed_by(&setup.servers)
        .env("NIX_STORED_USER_WRITE", "writer")
        .env("NIX_STORED_USER_WRITE_PASS", "w")
        .start();
    let builder = setup.builders.client("builder");
    setup.put(&daemon, &sample(1, b"x"), Some(&builder), &[]).is(401);
}
