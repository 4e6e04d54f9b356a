//! The place of a store, read and written without the store.

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
use crate::s3::place::Place;
use crate::support::audit;
use crate::support::noise::Noise;
#[cfg(feature = "s3")]
use crate::support::s3::OWNER;
#[cfg(feature = "s3")]
use crate::support::s3_bucket::{Bucket, Keys};
#[cfg(feature = "s3")]
use crate::support::s3_garage;
use crate::support::scratch::Scratch;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place for one store.
pub trait Site: Sync {
    /// Opens the store, as one more process would.
    fn open(&self) -> BoxFuture<'_, Arc<Store>>;

    /// Puts something there without the store.
    fn plant(&self, key: &str, bytes: &[u8]);

    /// What is there under a key.
    fn look(&self, key: &str) -> Option<Vec<u8>>;

    /// The keys of all that is there and not the daemon's own.
    fn keys(&self) -> Vec<String>;

    /// How much there is of uploads that did not come to their end.
    fn unfinished(&self) -> usize;

    /// Whether the entity tags in a list are those of the objects. `s3s-fs` lists none.
    fn lists_tags(&self) -> bool {
        true
    }
}

/// A directory.
pub struct Directory(Scratch);

impl Directory {
    pub fn new() -> Self {
        Self(Scratch::new())
    }

    fn root(&self) -> PathBuf {
        self.0.join("cache")
    }
}

impl Site for Directory {
    fn open(&self) -> BoxFuture<'_, Arc<Store>> {
        let store = FsStore::open(&self.root(), 0).expect("the store can be opened");
        async { Arc::new(store.into()) }.boxed()
    }

    fn plant(&self, key: &str, bytes: &[u8]) {
        let file = self.root().join(key);
        fs::create_dir_all(file.parent().expect("it is below the root")).expect("made");
        fs::write(file, bytes).expect("written");
    }

    fn look(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.root().join(key)).ok()
    }

    fn keys(&self) -> Vec<String> {
        audit::objects(&self.root())
    }

    fn unfinished(&self) -> usize {
        let staged = audit::staging(&self.root());
        staged.iter().filter(|name| !name.ends_with('/')).count()
    }
}

/// A bucket, or what is below a prefix in it.
#[cfg(feature = "s3")]
pub struct InBucket {
    place: Place,
    bucket: Bucket,
    prefix: &'static str,
}

/// Whether this process has the keys. If not, the test is run in one that has: a store takes them
/// from its environment, which a process cannot change while threads are running.
#[cfg(feature = "s3")]
pub fn has_keys(keys: Keys, test: &str) -> bool {
    const ID: &str = "AWS_ACCESS_KEY_ID";
    if std::env::var(ID).is_ok_and(|id| id == keys.id) {
        return true;
    }
    let (_, test) = test.split_once("::").expect("it is in a module");
    let output = std::process::Command::new(std::env::current_exe().expect("there is one"))
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(ID, keys.id)
        .env("AWS_SECRET_ACCESS_KEY", keys.secret)
        .output()
        .expect("it starts");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    // What the test counts is shown with `--nocapture`.
    eprintln!("{told}");
    false
}

#[cfg(feature = "s3")]
impl InBucket {
    /// In a bucket of a folder, if this process is the one in which `test` shall run.
    pub fn of_a_folder(test: &str) -> Option<Self> {
        has_keys(OWNER, test).then(|| Self::at(Place::folder(), ""))
    }

    /// The same below a prefix.
    pub fn below_a_prefix(test: &str) -> Option<Self> {
        has_keys(OWNER, test).then(|| Self::at(Place::folder(), "a/b"))
    }

    /// The same in Garage.
    pub fn of_garage(test: &str) -> Option<Self> {
        has_keys(s3_garage::KEYS, test).then(|| Self::at(Place::garage(), ""))
    }

    fn at(place: Place, prefix: &'static str) -> Self {
        let bucket = place.bucket();
        Self { place, bucket, prefix }
    }

    fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }
}

#[cfg(feature = "s3")]
impl Site for InBucket {
    fn open(&self) -> BoxFuture<'_, Arc<Store>> {
        use nix_stored::config::Location;
        use nix_stored::store::S3Store;
        async {
            let Ok(Location::Bucket(location)) = self.bucket.url_below(self.prefix).parse() else {
                panic!("{} is no bucket", self.bucket.url());
            };
            let (store, _) = S3Store::open(&location).await.expect("the bucket can be opened");
            Arc::new(store.into())
        }
        .boxed()
    }

    fn plant(&self, key: &str, bytes: &[u8]) {
        self.bucket.put(&self.key(key), bytes);
    }

    fn look(&self, key: &str) -> Option<Vec<u8>> {
        self.bucket.get(&self.key(key))
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.bucket.all_keys();
        let keys = keys.iter().map(|key| match self.prefix {
            "" => key.as_str(),
            prefix => key.strip_prefix(&format!("{prefix}/")).expect("nothing is elsewhere"),
        });
        keys.filter(|key| !key.starts_with(".nix-stored/")).map(str::to_owned).collect()
    }

    fn unfinished(&self) -> usize {
        self.place.unfinished(&self.bucket)
    }

    fn lists_tags(&self) -> bool {
        !matches!(self.place, Place::Folder(_))
    }
}

/// Names of every kind that a store gets.
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

/// The name of a narinfo with this number.
pub fn narinfo(number: usize) -> CachePath {
    path(&format!("{number:0>32}.narinfo"))
}

/// Bytes that no part of repeats another.
pub fn noise(length: usize) -> Vec<u8> {
    Noise::new(length as u64 + 1).bytes(length)
}

/// An object that is there.
#[track_caller]
pub fn there<T: std::fmt::Debug>(found: Result<Option<T>, StoreError>) -> T {
    match found {
        Ok(Some(found)) => found,
        other => panic!("it is not there: {other:?}"),
    }
}

/// What is known of an object that is there, from both questions.
pub async fn metadata(store: &Store, path: &CachePath) -> Metadata {
    let metadata = there(store.head(path).await);
    assert_eq!(there(store.get(path).await).metadata, metadata, "{path}");
    metadata
}

/// All bytes of an object.
pub async fn whole(object: Object) -> Vec<u8> {
    let size = object.metadata.size;
    part(object.content, 0..size).await
}

/// A part of an object.
pub async fn part(content: Content, range: std::ops::Range<u64>) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes[range.start as usize..range.end as usize].to_vec(),
        Content::File(file) => {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).expect("it is long enough");
            bytes
        }
        Content::Stream(stream) => {
            let chunks: Vec<Bytes> = stream.read(range).try_collect().await.expect("it arrives");
            chunks.concat()
        }
    }
}

/// What is under a name now.
pub async fn content(store: &Store, path: &CachePath) -> Vec<u8> {
    whole(there(store.get(path).await)).await
}

/// Runs what blocks.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic")
}

/// An upload of this in pieces of about `step` bytes, not committed yet.
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
            upload.write(piece).expect("it is taken");
        }
        upload
    })
    .await
}

pub async fn commit(upload: Box<dyn Upload>) -> Stored {
    blocking(move || upload.commit()).await.expect("it is stored")
}

/// Waits until `state` is so: what a store does in the background is done soon.
pub async fn until(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !state() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Lets so much time pass that what comes now has a later time than all before, also where times
/// are whole seconds. The time between the two.
pub async fn later() -> SystemTime {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let between = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    between
}
