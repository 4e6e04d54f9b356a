//! Failures of upstreams: what the client gets, that nothing wrong is stored, and that the daemon continues.

/// What an upstream answers.
mod answers;
/// What it says of a path.
mod narinfos;
/// What it sends.
mod nars;
/// Where it sends us.
mod redirects;
/// What it does not.
mod stalls;

use nix_stored::nix::StorePathHash;

use crate::support::audit::{assert_nothing_is_false, objects, staging};
use crate::support::daemon::Daemon;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::wire::{Received, Wire};

/// A path with a NAR of some size.
fn large() -> Sample {
    sample(1, &Noise::new(7).bytes(1_000_000))
}

/// The name of a narinfo.
fn narinfo(number: u8) -> String {
    format!("/{}.narinfo", StorePathHash::new([number; 20]))
}

fn get(mirror: &Daemon, path: &str) -> Received {
    Wire::to(mirror).request("GET", path, b"")
}

/// A narinfo with some lines changed; those that are changed to nothing are left out.
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

trait Told {
    /// A body that ended before its time.
    fn is_broken_off(&self);
    /// The whole of it.
    fn is(&self, bytes: &[u8]);
}

impl Told for Received {
    #[track_caller]
    fn is_broken_off(&self) {
        assert_eq!(self.status, 200);
        let length: usize = self.header("content-length").parse().expect("it has a length");
        assert!(self.body.len() < length, "{} of {length} bytes came", self.body.len());
    }

    #[track_caller]
    fn is(&self, bytes: &[u8]) {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-length"), bytes.len().to_string());
        assert!(self.body == bytes, "{} of {} bytes came", self.body.len(), bytes.len());
    }
}

/// Nothing of an upstream was kept, nothing is left on the way, and the daemon does its work.
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
    assert_eq!(assert_nothing_is_false(mirror.dir()), 1);
    drop(wire);
    let (status, log) = mirror.stop();
    assert!(status.success() && !log.contains("panic"), "{status}\n{log}");
}

/// The path was kept, and nothing but the truth.
#[track_caller]
fn assert_kept(mirror: &Daemon) {
    assert_eq!(assert_nothing_is_false(mirror.dir()), 1);
    mirror.wait_until("nothing is staged", || staging(mirror.dir()).len() == 1);
}
