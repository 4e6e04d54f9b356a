//! Servers with buckets, and daemons on them.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::audit::assert_none_is_false;
use crate::support::daemon::{Builder, Daemon};
use crate::support::objects::Sample;
use crate::support::s3::S3Server;
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::Faults;
use crate::support::s3_garage::Garage;
use crate::support::wire::{Received, Wire};

/// A server.
pub enum Place {
    /// A folder, served by this process.
    Folder(S3Server),
    Garage(&'static Garage),
}

impl Place {
    pub fn folder() -> Self {
        Self::Folder(S3Server::start())
    }

    pub fn garage() -> Self {
        Self::Garage(Garage::shared())
    }

    /// A new bucket.
    pub fn bucket(&self) -> Bucket {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cache-{}-{count}", std::process::id());
        match self {
            Self::Folder(server) => server.bucket(&name),
            Self::Garage(garage) => garage.bucket(&name),
        }
    }

    /// How much there is of uploads in parts that did not come to their end.
    pub fn unfinished(&self, bucket: &Bucket) -> usize {
        match self {
            Self::Folder(server) => server.unfinished(),
            Self::Garage(_) => bucket.unfinished().len(),
        }
    }
}

/// Makes every case a test on every server.
macro_rules! on_every_server {
    ($($(#[$attribute:meta])* $case:ident)+) => {
        mod folder {
            $($(#[$attribute])* #[test]
            fn $case() {
                super::$case(&crate::s3::place::Place::folder());
            })+
        }
        mod garage {
            $($(#[$attribute])* #[test]
            #[ignore = "needs Garage: tests/run --garage"]
            fn $case() {
                super::$case(&crate::s3::place::Place::garage());
            })+
        }
    };
}
pub(crate) use on_every_server;

/// A daemon whose requests to the S3 server can be made to fail.
pub struct Site<S = S3Server> {
    pub faults: Faults,
    pub bucket: Bucket,
    pub daemon: Daemon,
    pub server: S,
}

impl Site {
    pub fn new() -> Self {
        let server = S3Server::start();
        let bucket = server.bucket("cache");
        let faults = Faults::before(server.address());
        let daemon = over(&bucket.through(faults.address())).start();
        Self { faults, bucket, daemon, server }
    }
}

impl Site<()> {
    /// A site on a server of any kind, in a new bucket.
    pub fn at(place: &Place) -> Self {
        let bucket = place.bucket();
        let faults = Faults::before(bucket.address());
        let daemon = over(&bucket.through(faults.address())).start();
        Self { faults, bucket, daemon, server: () }
    }
}

impl<S> Site<S> {
    /// Puts a path into the bucket, so that the daemon has not seen it.
    pub fn plant(&self, sample: &Sample) {
        self.bucket.put(&sample.nar_path[1..], &sample.nar);
        self.bucket.put(&sample.narinfo_path[1..], sample.narinfo.as_bytes());
    }
}

/// A daemon over a bucket.
pub fn over(bucket: &Bucket) -> Builder {
    at(bucket, &bucket.url())
}

/// A daemon with this for its `NIX_STORED_PATH`, and the keys for a bucket.
pub fn at(bucket: &Bucket, url: &str) -> Builder {
    let builder = Daemon::builder().env("NIX_STORED_PATH", url);
    bucket.env().iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

/// Checks that everything in a bucket is what it claims to be. Returns how many narinfos there are.
#[track_caller]
pub fn assert_nothing_is_false(bucket: &Bucket) -> usize {
    assert_none_is_false(bucket.keys(), |key| bucket.get(key))
}

/// Uploads a path as Nix does.
#[track_caller]
pub fn upload(daemon: &Daemon, sample: &Sample) {
    for (path, body) in [
        (&sample.nar_path, sample.nar.as_slice()),
        (&sample.narinfo_path, sample.narinfo.as_bytes()),
    ] {
        let answer = put(daemon, path, body);
        assert!(matches!(answer.status, 200 | 201), "{path}: {} {}", answer.head, answer.text());
    }
}

#[track_caller]
pub fn put(daemon: &Daemon, path: &str, body: &[u8]) -> Received {
    Wire::to(daemon).request("PUT", path, body)
}

#[track_caller]
pub fn get(daemon: &Daemon, path: &str) -> Received {
    Wire::to(daemon).request("GET", path, b"")
}

#[track_caller]
pub fn head(daemon: &Daemon, path: &str) -> Received {
    Wire::to(daemon).request("HEAD", path, b"")
}
