//! Failures of upstreams: what the client gets, that nothing wrong is stored, and that the daemon continues.

/// Status codes and headers.
mod responses;
/// Narinfos.
mod narinfos;
/// NARs.
mod nars;
/// Redirects.
mod redirects;
/// Upstreams that do not answer.
mod stalls;

use nix_stored::nix::StorePathHash;

use crate::support::cache_dir::{assert_consistent, objects, staging};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::wire::{RawResponse, Wire};

/// A path with a large NAR.
fn large() -> Sample {
    sample(1, &Noise::new(7).bytes(1_000_000))
}

/// The request path of a narinfo.
fn narinfo(number: u8) -> String {
    format!("/{}.narinfo", StorePathHash::new([number; 20]))
}

fn get(mirror: &Daemon, path: &str) -> RawResponse {
    Wire::to(mirror).request("GET", path, b"")
}

/// A narinfo with changed lines; those changed to an empty value are removed.
fn changed(narinfo: &str, changes: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let (key, _) = line.split_once(": ").expect("a narinfo's line");
        match changes.iter().find(|(changed, _)| *changed == key) {
            Some((_, "")) => String::new(),
            Some((_, value)) => format!("{key}: {value}\n"),
            None => format!("{line}\n"),
        }
    };
    narinfo.lines().map(line).collect()
}

trait ResponseChecks {
    /// Checks that the body ended before its declared length.
    fn is_truncated(&self);
    /// Checks the whole body.
    fn is(&self, bytes: &[u8]);
}

impl ResponseChecks for RawResponse {
    #[track_caller]
    fn is_truncated(&self) {
        assert_eq!(self.status, 200);
        let length: usize =
            self.header("content-length").parse().expect("the response has a length");
        assert!(self.body.len() < length, "{} of {length} bytes came", self.body.len());
    }

    #[track_caller]
    fn is(&self, bytes: &[u8]) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-length"), bytes.len().to_string());
        assert!(self.body == bytes, "{} of {} bytes came", self.body.len(), bytes.len());
    }
}

/// Checks that nothing of an upstream was stored or is staged, and that the daemon still works.
#[track_caller]
fn assert_unharmed(mirror: Daemon) {
    mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() <= 1);
    assert_eq!(objects(mirror.dir()), [""; 0], "{}", mirror.log());
    let own = sample(200, b"uploaded");
    let mut wire = Wire::to(&mirror);
    assert_eq!(wire.request("PUT", &own.nar_path, &own.nar).status, 201);
    assert_eq!(wire.request("PUT", &own.narinfo_path, own.narinfo.as_bytes()).status, 201);
    wire.request("GET", &own.nar_path, b"").is(&own.nar);
    wire.request("GET", &own.narinfo_path, b"").is(own.narinfo.as_bytes());
    assert_eq!(assert_consistent(mirror.dir()), 1);
    drop(wire);
    let (status, log) = mirror.stop();
    assert!(status.success() && !log.contains("panic"), "{status}\n{log}");
}

/// Checks that the path was stored, and that all objects are consistent.
#[track_caller]
fn assert_kept(mirror: &Daemon) {
    assert_eq!(assert_consistent(mirror.dir()), 1);
    mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() == 1);
}
