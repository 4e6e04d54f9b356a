//! The storage of a store, accessed without the store.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use nix_stored::nix::CachePath;
use nix_stored::store::{Content, FsStore, Metadata, Object, Store, StoreError, Stored, Upload};

#[cfg(feature = "s3")]
use crate::s3::server::TestServer;
use crate::support::cache_dir;
use crate::support::noise::Noise;
#[cfg(feature = "s3")]
use crate::support::s3::OWNER;
#[cfg(feature = "s3")]
use crate::support::s3_bucket::{Bucket, Keys};
#[cfg(feature = "s3")]
use crate::support::s3_garage;
use crate::support::scratch::Scratch;

/// Only failing tests wait this long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The storage of one store.
pub trait TestBackend: Sync {
    /// Opens the store, like another process would.
    fn open(&self) -> BoxFuture<'_, Arc<Store>>;

    /// Writes an object without the store.
    fn plant(&self, key: &str, bytes: &[u8]);

    /// Reads an object without the store.
    fn read_directly(&self, key: &str) -> Option<Vec<u8>>;

    /// The keys of all objects except the daemon's own files.
    fn keys(&self) -> Vec<String>;

    /// The number of files or parts of unfinished uploads.
    fn unfinished(&self) -> usize;

    /// Whether listings have the entity tags of the objects. Those of `s3s-fs` have none.
    fn lists_tags(&self) -> bool {
        true
    }
}

/// A directory.
pub struct DirectoryBackend(Scratch);

impl DirectoryBackend {
    pub fn new() -> Self {
        Self(Scratch::new())
    }

    fn root(&self) -> PathBuf {
        self.0.join("cache")
    }
}

impl TestBackend for DirectoryBackend {
    fn open(&self) -> BoxFuture<'_, Arc<Store>> {
        let store = FsStore::open(&self.root(), 0).expect("the store opens");
        async { Arc::new(store.into()) }.boxed()
    }

    fn plant(&self, key: &str, bytes: &[u8]) {
        let file = self.root().join(key);
        fs::create_dir_all(file.parent().expect("the path is below the root")).expect("created");
        fs::write(file, bytes).expect("written");
    }

    fn read_directly(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.root().join(key)).ok()
    }

    fn keys(&self) -> Vec<String> {
        cache_dir::objects(&self.root())
    }

    fn unfinished(&self) -> usize {
        let staged = cache_dir::staging(&self.root());
        staged.iter().filter(|name| !name.ends_with('/')).count()
    }
}

/// A bucket, or a prefix in it.
#[cfg(feature = "s3")]
pub struct BucketBackend {
    server: TestServer,
    bucket: Bucket,
    prefix: &'static str,
}

/// Whether this process has the keys. If not, the test is run in a process that has them: a store
/// reads them from the environment, which must not be changed while threads are running.
#[cfg(feature = "s3")]
pub fn has_keys(keys: Keys, test: &str) -> bool {
    const ID: &str = "AWS_ACCESS_KEY_ID";
    if std::env::var(ID).is_ok_and(|id| id == keys.id) {
        return true;
    }
    let (_, test) = test.split_once("::").expect("the test is in a module");
    let output =
        std::process::Command::new(std::env::current_exe().expect("the executable is known"))
            .args(["--exact", test, "--include-ignored", "--nocapture"])
            .env(ID, keys.id)
            .env("AWS_SECRET_ACCESS_KEY", keys.secret)
            .output()
            .expect("the process starts");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
    // For the counts that a test prints with `--nocapture`.
    eprintln!("{printed}");
    false
}

#[cfg(feature = "s3")]
impl BucketBackend {
    /// A bucket of s3s-fs, if this process is the one that runs `test`.
    pub fn of_a_folder(test: &str) -> Option<Self> {
        has_keys(OWNER, test).then(|| Self::at(TestServer::folder(), ""))
    }

    /// A prefix in a bucket of s3s-fs.
    pub fn below_a_prefix(test: &str) -> Option<Self> {
        has_keys(OWNER, test).then(|| Self::at(TestServer::folder(), "a/b"))
    }

    /// A bucket of Garage.
    pub fn of_garage(test: &str) -> Option<Self> {
        has_keys(s3_garage::KEYS, test).then(|| Self::at(TestServer::garage(), ""))
    }

    fn at(server: TestServer, prefix: &'static str) -> Self {
        let bucket = server.bucket();
        Self { server, bucket, prefix }
    }

    fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }
}

#[cfg(feature = "s3")]
impl TestBackend for BucketBackend {
    fn open(&self) -> BoxFuture<'_, Arc<Store>> {
        use nix_stored::config::Location;
        use nix_stored::store::S3Store;
        async {
            let Ok(Location::Bucket(location)) = self.bucket.url_below(self.prefix).parse() else {
                panic!("{} is no bucket", self.bucket.url());
            };
            let (store, _) = S3Store::open(&location).await.expect("the bucket opens");
            Arc::new(store.into())
        }
        .boxed()
    }

    fn plant(&self, key: &str, bytes: &[u8]) {
        self.bucket.put(&self.key(key), bytes);
    }

    fn read_directly(&self, key: &str) -> Option<Vec<u8>> {
        self.bucket.get(&self.key(key))
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.bucket.all_keys();
        let keys = keys.iter().map(|key| match self.prefix {
            "" => key.as_str(),
            prefix => key.strip_prefix(&format!("{prefix}/")).expect("all keys have the prefix"),
        });
        keys.filter(|key| !key.starts_with(".nix-stored/")).map(str::to_owned).collect()
    }

    fn unfinished(&self) -> usize {
        self.server.unfinished(&self.bucket)
    }

    fn lists_tags(&self) -> bool {
        !matches!(self.server, TestServer::Folder(_))
    }
}

/// Keys of every kind.
pub const KEYS: [&str; 8] = [
    "8ha1dhmx807czjczmwy078s4r9s254il.narinfo",
    "8ha1dhmx807czjczmwy078s4r9s254il.ls",
    NAR,
    "nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz",
    "log/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv",
    "realisations/sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!out.doi",
    "build-trace-v2/7b42idxwrsfbjmqz2d4h92x2w6z2lrkg-hello-2.12.2.drv/out.doi",
    "debuginfo/abcdef0123456789abcdef0123456789abcdef01.debug",
];

pub const NAR: &str = "nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar";

#[track_caller]
pub fn path(key: &str) -> CachePath {
    key.parse().unwrap_or_else(|error| panic!("{key}: {error}"))
}

/// The path of the narinfo with this number.
pub fn narinfo(number: usize) -> CachePath {
    path(&format!("{number:0>32}.narinfo"))
}

/// Random bytes, so that no two ranges are equal.
pub fn noise(length: usize) -> Vec<u8> {
    Noise::new(length as u64 + 1).bytes(length)
}

/// Gets an object that must be present.
#[track_caller]
pub fn present<T: std::fmt::Debug>(found: Result<Option<T>, StoreError>) -> T {
    match found {
        Ok(Some(found)) => found,
        other => panic!("it is not there: {other:?}"),
    }
}

/// The metadata of an object, checked to be the same in HEAD and GET.
pub async fn metadata(store: &Store, path: &CachePath) -> Metadata {
    let metadata = present(store.head(path).await);
    assert_eq!(present(store.get(path).await).metadata, metadata, "{path}");
    metadata
}

/// Reads a whole object.
pub async fn whole(object: Object) -> Vec<u8> {
    let size = object.metadata.size;
    part(object.content, 0..size).await
}

/// Reads a range of an object.
pub async fn part(content: Content, range: std::ops::Range<u64>) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes[range.start as usize..range.end as usize].to_vec(),
        Content::File(file) => {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).expect("the file is long enough");
            bytes
        }
        Content::Stream(stream) => {
            let chunks: Vec<Bytes> =
                stream.read(range).try_collect().await.expect("the chunks arrive");
            chunks.concat()
        }
    }
}

/// Reads the object at a path.
pub async fn content(store: &Store, path: &CachePath) -> Vec<u8> {
    whole(present(store.get(path).await)).await
}

/// Runs blocking work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the task does not panic")
}

/// Starts an upload in pieces of about `step` bytes, without committing it.
pub async fn upload(
    store: &Arc<Store>,
    path: &CachePath,
    size: Option<u64>,
    bytes: &[u8],
    step: usize,
) -> Box<dyn Upload> {
    let (store, path, bytes) = (Arc::clone(store), path.clone(), bytes.to_vec());
    blocking(move || {
        let mut upload = store.start_upload(&path, size).expect("an upload begins");
        for piece in bytes.chunks(step) {
            upload.write(piece).expect("the upload is accepted");
        }
        upload
    })
    .await
}

pub async fn commit(upload: Box<dyn Upload>) -> Stored {
    blocking(move || upload.commit()).await.expect("stored")
}

/// Waits until `state` returns true, for background work of the store.
pub async fn until(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !state() {
        assert!(Instant::now() < deadline, "timeout while waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until later events have a later time than all before, even in whole seconds. Returns a
/// time between the two.
pub async fn later() -> SystemTime {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let between = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    between
}
