//! Several processes change the same objects at the same time, and acknowledged uploads are kept.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::stream;
use nix_stored::cache::{Actor, Cache, PutError, UploadReceipt};
use nix_stored::config::{Config, Location};
use nix_stored::nix::{CachePath, Compression};
use nix_stored::retention::{Collector, Limits};
use nix_stored::store::{Removed, S3Store, Store};
use tokio_util::sync::CancellationToken;

use super::commands::run;
use super::server::TestServer;
use crate::store::conformance::has_keys;
use crate::support::noise::Noise;
use crate::support::objects::{Sample, sample};
use crate::support::rounds::number;
use crate::support::s3::OWNER;
use crate::support::s3_bucket::Bucket;
use crate::support::s3_faults::{Action, FaultProxy};
use crate::support::s3_garage::KEYS;

/// The grace period.
const GRACE: Duration = Duration::from_secs(6);

/// Makes every case a test on every server, in a process with its keys.
macro_rules! on_every_server {
    ($($case:ident)+) => {
        mod folder {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if super::has_keys(super::OWNER, NAME) {
                    super::$case(&crate::s3::server::TestServer::folder()).await;
                }
            })+
        }
        mod garage {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs Garage: tests/run --garage"]
            async fn $case() {
                const NAME: &str = concat!(module_path!(), "::", stringify!($case));
                if super::has_keys(super::KEYS, NAME) {
                    super::$case(&crate::s3::server::TestServer::garage()).await;
                }
            })+
        }
    };
}

on_every_server! {
    a_collection_removes_no_acknowledged_upload
    a_delayed_deletion_removes_no_object_that_is_stored_again
    a_deletion_that_fails_is_not_sent_again_blindly
    a_use_in_a_batch_that_is_being_merged_is_read
    quarantine_keeps_an_object_that_was_stored_during_the_copy
    no_signature_is_lost_where_two_daemons_merge
    a_lease_is_ended_only_by_its_holder
    an_abandoned_lease_can_be_broken
    merging_delays_no_request
    merging_over_a_slow_connection_makes_progress_and_ends
    merged_batches_are_smaller_than_parts_of_uploads
}

async fn store(bucket: &Bucket) -> Arc<Store> {
    let Ok(Location::Bucket(location)) = bucket.url().parse() else {
        panic!("{} is no bucket", bucket.url());
    };
    Arc::new(S3Store::open(&location).await.expect("the bucket opens").0.into())
}

fn cache(store: &Arc<Store>) -> Arc<Cache> {
    // A lookup from memory can be three seconds old, which is too much for this short grace period.
    let required = ("NIX_STORED_REQUIRE_REFERENCES".to_owned(), "1".to_owned());
    let config = Config::from_vars([required]).expect("a valid configuration");
    let store = Arc::clone(store);
    Arc::new(Cache::new(store, config.cache_info, config.admission).with_grace(GRACE))
}

async fn put(cache: &Cache, path: &str, bytes: &[u8]) -> Result<UploadReceipt, PutError> {
    let path: CachePath = path[1..].parse().expect("an object path");
    let body = stream::iter([Ok(Bytes::copy_from_slice(bytes))]);
    cache.put(&path, Compression::None, Some(bytes.len() as u64), body).await
}

async fn upload(cache: &Cache, sample: &Sample) -> Result<(), PutError> {
    put(cache, &sample.nar_path, &sample.nar).await?;
    put(cache, &sample.narinfo_path, sample.narinfo.as_bytes()).await.map(drop)
}

/// A unique path with these references.
fn new_sample(noise: &mut Noise, references: &[Sample]) -> Sample {
    let contents = noise.bytes(200);
    let mut new = sample(0, &contents).named(noise);
    let names: Vec<_> =
        references.iter().map(|it| it.store_path.trim_start_matches("/nix/store/")).collect();
    new.narinfo = new.narinfo.replace("References: ", &format!("References: {}", names.join(" ")));
    new
}

fn keys_of(sample: &Sample) -> [String; 2] {
    [sample.nar_path[1..].to_owned(), sample.narinfo_path[1..].to_owned()]
}

/// Waits until everything stored so far may be collected.
async fn wait_until_old() {
    tokio::time::sleep(GRACE + Duration::from_millis(1200)).await;
}

fn long_ago() -> SystemTime {
    SystemTime::now() - GRACE
}

/// The number of references of a root.
const REFERENCES: usize = 6;

/// Two clients that upload roots whose references are about to be collected.
struct Race {
    families: Vec<tokio::sync::Mutex<(Vec<Sample>, Instant)>>,
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
    slow: AtomicUsize,
    lost: std::sync::Mutex<Vec<String>>,
}

impl Race {
    fn new(noise: &mut Noise) -> Self {
        let long_ago = Instant::now().checked_sub(2 * GRACE).unwrap_or_else(Instant::now);
        let family = |_| {
            let references = (0..REFERENCES).map(|_| new_sample(noise, &[])).collect();
            tokio::sync::Mutex::new((references, long_ago))
        };
        Self {
            families: (0..16).map(family).collect(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            slow: AtomicUsize::new(0),
            lost: std::sync::Mutex::default(),
        }
    }

    async fn run(&self, cache: &Cache, bucket: &Bucket, seed: u64) {
        let mut noise = Noise::new(seed);
        while !self.stop.load(Ordering::SeqCst) {
            let family = &self.families[noise.below(self.families.len() as u64) as usize];
            let wanted = GRACE.mul_f64(0.95 + noise.below(35) as f64 / 100.0);
            let due = family.try_lock().ok().filter(|family| family.1.elapsed() > wanted);
            let Some(mut family) = due else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let started = Instant::now();
            let root = new_sample(&mut noise, &family.0);
            let again = noise.below(4) == 0;
            let uploaded = async {
                for reference in &family.0 {
                    let path: CachePath = reference.narinfo_path[1..].parse().expect("a path");
                    let there = cache.head(&path).await.ok().flatten().is_some();
                    // Nix skips paths that are present; other clients upload them again.
                    if !there || again {
                        upload(cache, reference).await?;
                    }
                }
                upload(cache, &root).await
            };
            if let Err(error) = uploaded.await {
                // A path that the client saw was removed before the client used it, and the upload
                // fails.
                let is_refused = matches!(error, PutError::NarMissing(_) | PutError::Reference(_));
                assert!(is_refused, "{error:?}");
                self.refused.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            self.acknowledged.fetch_add(REFERENCES + 1, Ordering::SeqCst);
            family.1 = Instant::now();
            let expected: Vec<String> = family.0.iter().chain([&root]).flat_map(keys_of).collect();
            drop(family);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let bucket = bucket.clone();
            let keys = expected.clone();
            let absent = tokio::task::spawn_blocking(move || {
                keys.into_iter().filter(|key| bucket.head(key).status != 200).collect::<Vec<_>>()
            });
            let absent = absent.await.expect("the task does not panic");
            // A client that took longer may exceed the grace period.
            if started.elapsed() > GRACE.mul_f64(0.3) {
                self.slow.fetch_add(1, Ordering::SeqCst);
            } else {
                self.lost.lock().expect("the lock is not poisoned").extend(absent);
            }
        }
    }
}

async fn a_collection_removes_no_acknowledged_upload(server: &TestServer) {
    let seconds = number("NIX_STORED_TEST_COLLECTION_SECONDS").unwrap_or(20);
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    faults.all(Action::Delay(Duration::from_millis(5)));
    let through = bucket.through(faults.address());
    let mut noise = Noise::new(Noise::random_seed());
    let race = Arc::new(Race::new(&mut noise));
    let daemons = [cache(&store(&through).await), cache(&store(&through).await)];
    let collector = Collector::new(cache(&store(&through).await), Actor::collector());
    let limits = Limits { max_size: Some(0), max_age: None, grace: GRACE };
    let collected = Arc::new(AtomicUsize::new(0));
    // The clients and the collector are separate tasks, as in a daemon. In one future on one
    // thread, the lease that a collection drops would block that thread, and with it the wake-ups
    // of the others.
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let (race, collected) = (Arc::clone(&race), Arc::clone(&collected));
        async move {
            while !race.stop.load(Ordering::SeqCst) {
                let stop = CancellationToken::new();
                let report = collector.collect(&limits, SystemTime::now(), &stop, |_| {}).await;
                let report = report.expect("the collection succeeds");
                collected.fetch_add(report.paths, Ordering::SeqCst);
            }
        }
    });
    for seed in 1..=8 {
        let (race, bucket) = (Arc::clone(&race), bucket.clone());
        let cache = daemons[seed % 2].clone();
        tasks.spawn(async move { race.run(&cache, &bucket, seed as u64).await });
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    race.stop.store(true, Ordering::SeqCst);
    while let Some(result) = tasks.join_next().await {
        result.expect("no task panics");
    }
    let [acknowledged, refused, slow, collected] =
        [&race.acknowledged, &race.refused, &race.slow, &collected]
            .map(|count| count.load(Ordering::SeqCst));
    let lost = std::mem::take(&mut *race.lost.lock().expect("the lock is not poisoned"));
    eprintln!(
        "{acknowledged} paths were acknowledged in {seconds} s, {collected} collected, {} lost, \
         {refused} uploads refused, {slow} too slow to say",
        lost.len()
    );
    assert!(acknowledged > 20 && collected > 10, "{acknowledged} {collected}");
    let judged = acknowledged / (REFERENCES + 1) - slow;
    assert!(judged > 5, "{judged} roots were uploaded fast enough");
    assert!(lost.is_empty(), "{lost:#?}");
}

async fn a_delayed_deletion_removes_no_object_that_is_stored_again(server: &TestServer) {
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    let collector = store(&bucket.through(faults.address())).await;
    let daemon = cache(&store(&bucket).await);
    let one = sample(1, b"one");
    upload(&daemon, &one).await.expect("stored");
    wait_until_old().await;
    for (key, body) in
        [(&one.nar_path, one.nar.as_slice()), (&one.narinfo_path, one.narinfo.as_bytes())]
    {
        let path: CachePath = key[1..].parse().expect("a path");
        let wanted = format!("DELETE /{}{key}", bucket.name());
        faults.on(move |head| match head.starts_with(&wanted) {
            true => Action::Delay(Duration::from_secs(3)),
            false => Action::Pass,
        });
        let removing = {
            let (collector, path) = (Arc::clone(&collector), path.clone());
            tokio::spawn(async move {
                let removed =
                    collector.remove(&path, long_ago()).await.expect("the request succeeds");
                collector.sync_removals().await.expect("the request succeeds");
                removed
            })
        };
        // The deletion request is on its way.
        let started = Instant::now();
        while !faults
            .requests()
            .iter()
            .any(|line| line.starts_with("DELETE") && line.contains(key.as_str()))
        {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing is deleted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        put(&daemon, key, body).await.expect("stored");
        assert_eq!(removing.await.expect("the task does not panic"), Removed::Gone);
        assert_eq!(bucket.get(&key[1..]).as_deref(), Some(body), "{key}");
        faults.all(Action::Pass);
    }
}

async fn a_deletion_that_fails_is_not_sent_again_blindly(server: &TestServer) {
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    let collector = store(&bucket.through(faults.address())).await;
    let daemon = cache(&store(&bucket).await);
    let one = sample(1, b"one");
    upload(&daemon, &one).await.expect("stored");
    wait_until_old().await;
    let key = one.narinfo_path.clone();
    let mut failed = 0;
    faults.on(move |head| {
        if head.starts_with("DELETE ") && head.contains(&key) && failed < 3 {
            failed += 1;
            return Action::Error(503, "SlowDown");
        }
        Action::Pass
    });
    let path: CachePath = one.narinfo_path[1..].parse().expect("a path");
    let removing = {
        let collector = Arc::clone(&collector);
        let path = path.clone();
        tokio::spawn(async move {
            collector.remove(&path, long_ago()).await.expect("the request succeeds")
        })
    };
    let started = Instant::now();
    while !faults
        .requests()
        .iter()
        .any(|line| line.starts_with("DELETE") && line.contains("narinfo"))
    {
        assert!(started.elapsed() < Duration::from_secs(30), "nothing is deleted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A request during the attempt gets the correct result.
    let there = daemon.head(&path).await.expect("the request succeeds").is_some();
    let removed = removing.await.expect("the task does not panic");
    let kept = bucket.get(&one.narinfo_path[1..]).is_some();
    assert_eq!(there, kept, "{removed:?}");
    assert_eq!(kept, removed == Removed::InUse);
}

async fn a_use_in_a_batch_that_is_being_merged_is_read(server: &TestServer) {
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    let collector = store(&bucket.through(faults.address())).await;
    let user = store(&bucket).await;
    let one = sample(1, b"one");
    let path: CachePath = one.narinfo_path[1..].parse().expect("a path");
    bucket.put(&one.narinfo_path[1..], one.narinfo.as_bytes());
    wait_until_old().await;
    assert!(user.touch_now(&path).await.expect("the request succeeds"));
    // The batch is merged by another daemon, between the list request and the read.
    let (direct, mut merged) = (bucket.clone(), false);
    faults.on(move |head| {
        if head.starts_with("GET ") && head.contains(".nix-stored/uses/") && !merged {
            merged = true;
            let keys = direct.all_keys();
            let batch = keys.iter().find(|key| key.starts_with(".nix-stored/uses/")).expect("one");
            let text = direct.get(batch).expect("present");
            direct.put(".nix-stored/uses/9999999999999-0000000000000000", &text);
            direct.delete(batch);
        }
        Action::Pass
    });
    assert_eq!(
        collector.remove(&path, long_ago()).await.expect("the request succeeds"),
        Removed::InUse
    );
}

async fn quarantine_keeps_an_object_that_was_stored_during_the_copy(server: &TestServer) {
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    let repairing = store(&bucket.through(faults.address())).await;
    let (one, key) = (sample(1, b"one"), sample(1, b"one").nar_path[1..].to_owned());
    bucket.put(&key, b"something false");
    let path: CachePath = key.parse().expect("a path");
    let etag = repairing.head(&path).await.expect("the request succeeds").expect("present").etag;
    let (direct, good, mut copied) = (bucket.clone(), one.nar.clone(), false);
    faults.on({
        let key = key.clone();
        move |head| {
            let copies = head.to_ascii_lowercase().contains("x-amz-copy-source");
            if copied && !copies {
                copied = false;
                // A client uploads a valid one through another daemon.
                direct.put(&key, &good);
            }
            copied |= copies;
            Action::Pass
        }
    });
    assert!(!repairing.quarantine(&path, &etag).await.expect("the request succeeds"));
    assert_eq!(bucket.get(&key), Some(one.nar));
    faults.all(Action::Pass);
    // An unchanged object is quarantined.
    let etag = repairing.head(&path).await.expect("the request succeeds").expect("present").etag;
    assert!(repairing.quarantine(&path, &etag).await.expect("the request succeeds"));
    assert_eq!(bucket.get(&key), None);
}

async fn no_signature_is_lost_where_two_daemons_merge(server: &TestServer) {
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    faults.all(Action::Delay(Duration::from_millis(5)));
    let through = bucket.through(faults.address());
    let daemons = [cache(&store(&through).await), cache(&store(&through).await)];
    let mut noise = Noise::new(Noise::random_seed());
    let sign = |sample: &Sample, name: &str| {
        let signature = data_encoding::BASE64.encode(&[name.as_bytes()[0]; 64]);
        format!("{}Sig: {name}-1:{signature}\n", sample.narinfo)
    };
    let mut kept = 0;
    for round in 0..50 {
        let one = new_sample(&mut noise, &[]);
        put(&daemons[0], &one.nar_path, &one.nar).await.expect("stored");
        // Half of the objects exist before, and half are new.
        if round % 2 == 0 {
            put(&daemons[0], &one.narinfo_path, one.narinfo.as_bytes()).await.expect("stored");
        }
        let (a, b) = (sign(&one, "alice"), sign(&one, "bob"));
        let both = tokio::join!(
            put(&daemons[0], &one.narinfo_path, a.as_bytes()),
            put(&daemons[1], &one.narinfo_path, b.as_bytes())
        );
        both.0.expect("stored");
        both.1.expect("stored");
        let text = bucket.get(&one.narinfo_path[1..]).expect("present");
        let text = String::from_utf8(text).expect("a text");
        kept +=
            ["alice", "bob"].iter().filter(|name| text.contains(&format!("Sig: {name}-1"))).count();
    }
    assert_eq!(kept, 100);
    for daemon in &daemons {
        daemon.flush().await.expect("the request succeeds");
    }
    let left = bucket.all_keys().into_iter().filter(|key| key.contains("/changing/"));
    assert_eq!(left.count(), 0, "objects of turns are left");
}

async fn a_lease_is_ended_only_by_its_holder(server: &TestServer) {
    let bucket = server.bucket();
    let store = store(&bucket).await;
    let lock =
        store.private_files().lock_collection().await.expect("the request succeeds").expect("free");
    // The lease has expired, and another process has taken it.
    bucket.put(".nix-stored/lock", b"0\nprocess 7 elsewhere\n");
    drop(lock);
    assert_eq!(bucket.get(".nix-stored/lock").as_deref(), Some(&b"0\nprocess 7 elsewhere\n"[..]));
    bucket.delete(".nix-stored/lock");
    let lock =
        store.private_files().lock_collection().await.expect("the request succeeds").expect("free");
    assert!(bucket.get(".nix-stored/lock").is_some());
    drop(lock);
    assert_eq!(bucket.get(".nix-stored/lock"), None);
}

#[allow(clippy::unused_async, reason = "all cases are")]
async fn an_abandoned_lease_can_be_broken(server: &TestServer) {
    let bucket = server.bucket();
    bucket.put(".nix-stored/lock", b"0\nprocess 7 on elsewhere\n");
    let refused = run(&bucket, &["gc"]).is(1).prints_error("process 7 on elsewhere");
    refused.prints_error("--break-lock").prints_error("a collection, deletion or repair");
    let broken = run(&bucket, &["gc", "--break-lock"]).is(0);
    assert!(broken.err.contains("process 7 on elsewhere"), "{broken:?}");
    assert_eq!(bucket.get(".nix-stored/lock"), None);
    let again = run(&bucket, &["gc", "--break-lock"]).is(0);
    assert!(again.err.contains("no collection lock"), "{again:?}");
}

async fn merging_delays_no_request(server: &TestServer) {
    let bucket = server.bucket();
    let faults = FaultProxy::in_front_of(bucket.address());
    let store = store(&bucket.through(faults.address())).await;
    let mut noise = Noise::new(1);
    let paths: Vec<CachePath> = (0..70)
        .map(|_| new_sample(&mut noise, &[]).narinfo_path[1..].parse().expect("a path"))
        .collect();
    // One batch each, until there are enough to be merged. Merging takes longer than recording a
    // use may take.
    faults.on(|head| match head.starts_with("GET ") && head.contains(".nix-stored/uses/") {
        true => Action::Delay(Duration::from_secs(6)),
        false => Action::Pass,
    });
    for path in &paths {
        let started = Instant::now();
        store.touch_now(path).await.expect("the request succeeds");
        assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
    }
    assert!(batches(&bucket).len() > 60, "the batches were merged at once");
    faults.all(Action::Pass);
    let started = Instant::now();
    while batches(&bucket).len() > 20 {
        assert!(started.elapsed() < Duration::from_secs(60), "{} batches", batches(&bucket).len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let texts: Vec<String> = batches(&bucket)
        .iter()
        .filter_map(|key| bucket.get(key))
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .collect();
    let text = texts.concat();
    assert!(paths.iter().all(|path| text.contains(&path.key())), "a use was lost");
}

/// The keys of the batches of uses in a bucket.
fn batches(bucket: &Bucket) -> Vec<String> {
    let query = [("list-type", "2"), ("prefix", ".nix-stored/uses/")];
    // s3s-fs fails if an object is deleted while it lists.
    for _ in 0..100 {
        let listed = bucket.request("GET", "", &query, &[], b"");
        if listed.status == 200 {
            let text = listed.text();
            assert!(!text.contains("<IsTruncated>true"), "there are more than a page has");
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next());
            return keys.map(str::to_owned).collect();
        }
        assert_eq!(listed.status, 500, "{}", listed.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the batches cannot be listed");
}

/// A key with the length of those in batches.
fn used_key(number: usize) -> String {
    format!("nar/{number:052}.nar.xz")
}

async fn merging_over_a_slow_connection_makes_progress_and_ends(server: &TestServer) {
    const BATCHES: usize = 400;
    let bucket = server.bucket();
    for number in 0..BATCHES {
        let key = format!(".nix-stored/uses/{number:013}-0000000000000000");
        bucket.put(&key, format!("{} {}\n", 1_700_000_000 + number, used_key(number)).as_bytes());
    }
    let faults = FaultProxy::in_front_of(bucket.address());
    faults.all(Action::Delay(Duration::from_millis(300)));
    let through = bucket.through(faults.address());
    let started = Instant::now();
    // Two daemons do it concurrently, as each does at its start.
    let stores = [store(&through).await, store(&through).await];
    let mut steps = vec![BATCHES];
    while steps.last().is_none_or(|count| *count >= 64) {
        assert!(started.elapsed() < Duration::from_secs(180), "{steps:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let count = batches(&bucket).len();
        if steps.last() != Some(&count) {
            steps.push(count);
        }
    }
    let asked = faults.requests();
    let (lists, others): (Vec<_>, Vec<_>) =
        asked.iter().filter(|line| line.contains("uses")).partition(|line| line.contains("list-"));
    let (lists, others) = (lists.len(), others.len());
    eprintln!(
        "{BATCHES} batches were merged in {:?}, by {lists} lists and {others} other requests of 2 \
         daemons; there were {steps:?}",
        started.elapsed()
    );
    // The merges are incremental, so a daemon that ends during them has merged some batches.
    assert!(steps.iter().any(|count| (64..BATCHES).contains(count)), "{steps:?}");
    // Both read all batches at the start, before merging and to merge them, and delete them.
    assert!(others < 2 * (4 * BATCHES + 50), "{others} requests");
    // Failed requests of s3s-fs are sent again.
    assert!(lists < BATCHES, "{lists} lists");
    // No use is lost.
    let mut left: HashSet<String> = (0..BATCHES).map(used_key).collect();
    while !left.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(180), "lost: {left:?}");
        // A batch that is removed meanwhile was merged into another one.
        for text in batches(&bucket).iter().filter_map(|batch| bucket.get(batch)) {
            let text = String::from_utf8(text).expect("a text");
            text.lines().filter_map(|line| line.split(' ').nth(1)).for_each(|key| {
                left.remove(key);
            });
        }
    }
    drop(stores);
}

async fn merged_batches_are_smaller_than_parts_of_uploads(server: &TestServer) {
    const PART: usize = 5 << 20;
    // The maximum number of uses in a batch of an earlier version.
    const USES: usize = 150_000;
    let bucket = server.bucket();
    let mut text = String::new();
    for number in 0..USES {
        text += &format!("{} {}\n", 1_700_000_000, used_key(number));
    }
    assert!(text.len() > 2 * PART, "{}", text.len());
    bucket.put(".nix-stored/uses/0000000000000-0000000000000000", text.as_bytes());
    let path: CachePath = sample(1, b"one").narinfo_path[1..].parse().expect("a path");
    let faults = FaultProxy::in_front_of(bucket.address());
    let sizes = Arc::new(std::sync::Mutex::new(Vec::<usize>::new()));
    faults.on({
        let sizes = Arc::clone(&sizes);
        move |head| {
            if head.starts_with("PUT ") && head.contains("/uses/") {
                let length = head.to_ascii_lowercase();
                let length = length.split("content-length: ").nth(1).unwrap_or_default();
                let length = length.lines().next().unwrap_or_default().parse();
                sizes.lock().expect("the lock is not poisoned").push(length.expect("a length"));
            }
            Action::Pass
        }
    });
    let store = store(&bucket.through(faults.address())).await;
    // A collection rewrites all of it.
    let old = sample(2, b"two");
    upload(&cache(&store), &old).await.expect("stored");
    wait_until_old().await;
    let limits = Limits { max_size: Some(0), max_age: None, grace: GRACE };
    let collector = Collector::new(cache(&store), Actor::collector());
    let stop = CancellationToken::new();
    let report = collector.collect(&limits, SystemTime::now(), &stop, |_| {}).await;
    assert_eq!(report.expect("the collection succeeds").paths, 1);
    let started = Instant::now();
    while sizes.lock().expect("the lock is not poisoned").iter().sum::<usize>() < text.len() {
        assert!(started.elapsed() < Duration::from_secs(60), "{sizes:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(sizes.lock().expect("the lock is not poisoned").iter().all(|size| *size < PART));
    store.touch_now(&path).await.expect("the request succeeds");
}

mod of_others {
    use crate::s3::server::{TestServer, at};

    #[test]
    #[ignore = "needs Garage: tests/run --garage"]
    fn uploads_of_other_programs_are_not_aborted() {
        let server = TestServer::garage();
        let bucket = server.bucket();
        let nar = "nar/0g8ww6m6ahj3zw0gd94q2bxx6x8dyvcw2vzyxrysc6hx1zy7w0ny.nar.xz";
        let theirs = "backups/database.tar";
        for key in [nar, theirs] {
            let response = bucket.request("POST", key, &[("uploads", "")], &[], b"");
            assert_eq!(response.status, 200, "{}", response.text());
        }
        // Long enough for the upload to count as abandoned.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let url = format!("{}&abandoned-after=1s", bucket.url());
        let daemon = at(&bucket, &url).start();
        daemon.wait_until("our unfinished upload is removed", || bucket.unfinished().len() < 2);
        assert_eq!(bucket.unfinished(), [theirs]);
    }
}
