//! S3 servers, and daemons with buckets on them.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::cache_dir::assert_objects_consistent;
use crate::support::daemon::{Builder, Daemon};
use crate::support::objects::Sample;
use crate::support::s3::S3Server;
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::FaultProxy;
use crate::support::s3_garage::Garage;
use crate::support::wire::{RawResponse, Wire};

/// An S3 server.
pub enum TestServer {
    /// s3s-fs on a folder, in this process.
    Folder(S3Server),
    Garage(&'static Garage),
}

impl TestServer {
    pub fn folder() -> Self {
        Self::Folder(S3Server::start())
    }

    pub fn garage() -> Self {
        Self::Garage(Garage::shared())
    }

    /// Creates a bucket.
    pub fn bucket(&self) -> Bucket {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cache-{}-{count}", std::process::id());
        match self {
            Self::Folder(server) => server.bucket(&name),
            Self::Garage(garage) => garage.bucket(&name),
        }
    }

    /// The number of unfinished multipart uploads, or of their files.
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
                super::$case(&crate::s3::server::TestServer::folder());
            })+
        }
        mod garage {
            $($(#[$attribute])* #[test]
            #[ignore = "needs Garage: tests/run --garage"]
            fn $case() {
                super::$case(&crate::s3::server::TestServer::garage());
            })+
        }
    };
}
pub(crate) use on_every_server;

/// A daemon behind a proxy that can make its requests to the S3 server fail.
pub struct FaultySetup<S = S3Server> {
    pub faults: FaultProxy,
    pub bucket: Bucket,
    pub daemon: Daemon,
    pub server: S,
}

impl FaultySetup {
    pub fn new() -> Self {
        let server = S3Server::start();
        let bucket = server.bucket("cache");
        let faults = FaultProxy::in_front_of(server.address());
        let daemon = over(&bucket.through(faults.address())).start();
        Self { faults, bucket, daemon, server }
    }
}

impl FaultySetup<()> {
    /// A daemon on a new bucket of this server.
    pub fn at(server: &TestServer) -> Self {
        let bucket = server.bucket();
        let faults = FaultProxy::in_front_of(bucket.address());
        let daemon = over(&bucket.through(faults.address())).start();
        Self { faults, bucket, daemon, server: () }
    }
}

impl<S> FaultySetup<S> {
    /// Stores a path in the bucket without the daemon.
    pub fn plant(&self, sample: &Sample) {
        self.bucket.put(&sample.nar_path[1..], &sample.nar);
        self.bucket.put(&sample.narinfo_path[1..], sample.narinfo.as_bytes());
    }
}

/// A daemon with its cache in a bucket.
pub fn over(bucket: &Bucket) -> Builder {
    at(bucket, &bucket.url())
}

/// A daemon with this `NIX_STORED_PATH`, and the keys of a bucket.
pub fn at(bucket: &Bucket, url: &str) -> Builder {
    let builder = Daemon::builder().env("NIX_STORED_PATH", url);
    bucket.env().iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

/// Checks that all objects in a bucket are consistent. Returns the number of narinfos.
#[track_caller]
pub fn assert_consistent(bucket: &Bucket) -> usize {
    assert_objects_consistent(bucket.keys(), |key| bucket.get(key))
}

/// Uploads a path like Nix.
#[track_caller]
pub fn upload(daemon: &Daemon, sample: &Sample) {
    for (path, body) in [
        (&sample.nar_path, sample.nar.as_slice()),
        (&sample.narinfo_path, sample.narinfo.as_bytes()),
    ] {
        let response = put(daemon, path, body);
        assert!(
            matches!(response.status, 200 | 201),
            "{path}: {} {}",
            response.head,
            response.text()
        );
    }
}

#[track_caller]
pub fn put(daemon: &Daemon, path: &str, body: &[u8]) -> RawResponse {
    Wire::to(daemon).request("PUT", path, body)
}

#[track_caller]
pub fn get(daemon: &Daemon, path: &str) -> RawResponse {
    Wire::to(daemon).request("GET", path, b"")
}

#[track_caller]
pub fn head(daemon: &Daemon, path: &str) -> RawResponse {
    Wire::to(daemon).request("HEAD", path, b"")
}
