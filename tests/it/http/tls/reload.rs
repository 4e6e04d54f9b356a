//! SIGHUP: new connections get the new certificate, existing ones are not affected.

use std::fs;

use super::{CurlResult, curl, curl_command, parse_output, showing};
use crate::support::certificates::{Authority, CertFiles};
use crate::support::daemon::Daemon;
use crate::support::nix::utf8;
use crate::support::noise::Noise;
use crate::support::objects::sample;
use crate::support::scratch::Scratch;

/// The files of the certificate and key in use.
struct ReloadedFiles {
    scratch: Scratch,
    files: CertFiles,
}

impl ReloadedFiles {
    fn new(first: &CertFiles) -> Self {
        let scratch = Scratch::new();
        let files = CertFiles { cert: scratch.join("cert"), key: scratch.join("key") };
        let files_in_use = Self { scratch, files };
        files_in_use.put(first);
        files_in_use
    }

    fn put(&self, issued: &CertFiles) {
        fs::copy(&issued.cert, &self.files.cert).expect("the file is copied");
        fs::copy(&issued.key, &self.files.key).expect("the file is copied");
    }
}

fn ask(authority: &Authority, daemon: &Daemon) -> CurlResult {
    curl(authority, &format!("{}/nix-cache-info", daemon.url()), &[])
}

#[test]
fn a_new_certificate_is_used_and_an_invalid_one_is_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let files_in_use = ReloadedFiles::new(&old.server("127.0.0.1"));
    let daemon = showing(&files_in_use.files).start();
    ask(&old, &daemon).is(200);

    let next = new.server("127.0.0.1");
    files_in_use.put(&next);
    // The files are not reloaded before SIGHUP.
    ask(&old, &daemon).is(200);
    daemon.reload();
    ask(&new, &daemon).is(200);
    assert_eq!(ask(&old, &daemon).status, 0);

    // One file of a new pair, an invalid key, and an empty file.
    let other = fs::read_to_string(new.server("127.0.0.1").key).expect("present");
    for spoiled in [&other, "no key\n", ""] {
        fs::write(&files_in_use.files.key, spoiled).expect("written");
        daemon.reload();
        ask(&new, &daemon).is(200);
    }
    fs::remove_file(&files_in_use.files.cert).expect("present");
    daemon.reload();
    ask(&new, &daemon).is(200);
    let log = daemon.log();
    // A line for each file; at the end both are unusable.
    assert_eq!(log.matches("the previous value stays in use").count(), 5, "{log}");

    files_in_use.put(&next);
    daemon.reload();
    ask(&new, &daemon).is(200);
}

/// Whether the daemon has the file of this object open.
fn is_open(daemon: &Daemon, path: &str) -> bool {
    let folder = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    let files = fs::read_dir(folder).expect("the daemon is still there");
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets.into_iter().any(|target| target.ends_with(&path[1..]))
}

#[test]
fn running_transfers_are_finished_with_the_old_certificate() {
    let (old, new) = (Authority::new(), Authority::new());
    let files_in_use = ReloadedFiles::new(&old.server("127.0.0.1"));
    let daemon = showing(&files_in_use.files).start();
    let sample = sample(1, &Noise::new(1).bytes(30 << 20));
    let upload = files_in_use.scratch.join("upload");
    fs::write(&upload, &sample.nar).expect("written");
    let url = format!("{}{}", daemon.url(), sample.nar_path);
    curl(&old, &url, &["-T", utf8(&upload)]).is(201);
    for version in ["--http1.1", "--http2"] {
        files_in_use.put(&old.server("127.0.0.1"));
        daemon.reload();
        let arguments = [version, "--limit-rate", "10M"];
        let slow = curl_command(&old, &url, &arguments).spawn().expect("curl is installed");
        daemon.wait_until("the transfer has begun", || is_open(&daemon, &sample.nar_path));
        files_in_use.put(&new.server("127.0.0.1"));
        daemon.reload();
        ask(&new, &daemon).is(200);
        let whole = parse_output(&slow.wait_with_output().expect("the process ends")).is(200);
        assert!(whole.body == sample.nar, "{} bytes", whole.body.len());
    }
}

#[test]
fn another_client_ca_applies_to_new_connections() {
    let (servers, first, second) = (Authority::new(), Authority::new(), Authority::new());
    let scratch = Scratch::new();
    let clients = scratch.join("clients.pem");
    fs::copy(first.file(), &clients).expect("the file is copied");
    let daemon = super::signed_by(&servers).env("NIX_STORED_TLS_CLIENT_CA", utf8(&clients)).start();
    let put = |holder: &CertFiles, number: u8| {
        let sample = sample(number, &[number]);
        let upload = scratch.join("upload");
        fs::write(&upload, &sample.nar).expect("written");
        let url = format!("{}{}", daemon.url(), sample.nar_path);
        let arguments = ["--cert", utf8(&holder.cert), "--key", utf8(&holder.key)];
        curl(&servers, &url, &[&arguments[..], &["-T", utf8(&upload)]].concat()).status
    };
    let (one, other) = (first.client("one"), second.client("other"));
    assert_eq!((put(&one, 1), put(&other, 2)), (201, 0));
    fs::copy(second.file(), &clients).expect("the file is copied");
    daemon.reload();
    assert_eq!((put(&one, 3), put(&other, 4)), (0, 201));
}
