//! A running migration.

use std::collections::HashSet;
use std::io::{self, BufReader};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::report::{MigrateError, Report};
use crate::cache::{Adopted, BodyError, Cache, PutError};
use crate::inventory::{Inventory, Progress, groups};
use crate::logging::with_causes;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression, NarInfo, Sha256Hash};
use crate::retention::Pins;
use crate::store::{Content, Object, foreign_key};
use crate::unpack::{InspectReader, object_reader};
use crate::verify::{Damage, DamageKind};

/// The interval of progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The result for one object of the other cache.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It is here.
    Here,
    /// It is no longer there.
    Gone,
    /// A NAR whose file hash differs from its name. Whether it is damaged depends on its narinfo,
    /// because other programs name NARs differently.
    Misnamed { expected: Sha256Hash, actual: Sha256Hash },
    /// It is false, or cannot be read.
    Damaged { expected: String, actual: String },
}

/// Copies the objects that `from` has and `to` lacks, `jobs` at a time. Both caches may be in use.
pub async fn migrate(
    from: &Cache,
    to: &Cache,
    jobs: usize,
    stop: &CancellationToken,
    mut on_progress: impl FnMut(Progress),
) -> Result<Report, MigrateError> {
    let found = |objects| on_progress(Progress::Found(objects));
    let inventory = from.inventory(found).await?;
    let migration = Migration::new(from, to, &inventory);
    for (path, error) in &inventory.unreadable {
        migration.report().damage.push(Damage::unreadable(path.clone(), error));
    }
    // First, so that a collection in the target knows of them.
    migration.pins().await?;
    let of = inventory.size();
    let order: Vec<u32> = migration.groups.iter().flatten().copied().collect();
    let paths = stream::iter(order).map(|path| migration.path(path as usize));
    let copied = |done| on_progress(Progress::Done { done, of });
    let all_paths = migration.execute(paths.buffer_unordered(jobs), stop, copied).await?;
    let unowned = stream::iter(&inventory.unowned);
    let unowned = unowned.map(|object| migration.unowned(&object.path, object.size));
    let copied = |done| on_progress(Progress::Done { done, of });
    let stopped =
        !all_paths || !migration.execute(unowned.buffer_unordered(jobs), stop, copied).await?;
    Ok(Report { stopped, ..migration.finish() })
}

/// A running migration.
struct Migration<'a> {
    from: &'a Cache,
    to: &'a Cache,
    inventory: &'a Inventory,
    /// Paths that refer to each other; references come first.
    groups: Vec<Vec<u32>>,
    /// The group of each path.
    group_of: Vec<u32>,
    /// What became of the objects that several paths can need.
    shared: Vec<OnceCell<Outcome>>,
    /// Which paths are done.
    done: watch::Sender<Vec<bool>>,
    /// How many bytes of the other cache are.
    bytes_done: AtomicU64,
    report: Mutex<Report>,
}

impl<'a> Migration<'a> {
    fn new(from: &'a Cache, to: &'a Cache, inventory: &'a Inventory) -> Self {
        let groups = groups(inventory);
        let mut group_of = vec![0; inventory.paths.len()];
        for (rank, group) in (0..).zip(&groups) {
            group.iter().for_each(|&path| group_of[path as usize] = rank);
        }
        let named = (0..inventory.paths.len()).flat_map(|path| inventory.shared_by(path));
        let mut report = Report { orphans: inventory.shared.len(), ..Report::default() };
        report.orphans -= named.collect::<HashSet<_>>().len();
        Self {
            from,
            to,
            inventory,
            groups,
            group_of,
            shared: inventory.shared.iter().map(|_| OnceCell::new()).collect(),
            done: watch::Sender::new(vec![false; inventory.paths.len()]),
            bytes_done: AtomicU64::new(0),
            report: Mutex::new(report),
        }
    }

    /// Waits for all of `work`. Returns whether all of it was completed.
    async fn execute(
        &self,
        work: impl Stream<Item = Result<(), MigrateError>>,
        stop: &CancellationToken,
        mut on_progress: impl FnMut(u64),
    ) -> Result<bool, MigrateError> {
        let mut work = pin!(work);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(false),
                done = work.next() => match done {
                    Some(done) => done?,
                    None => return Ok(true),
                },
                _ = tick.tick() => on_progress(self.bytes_done.load(Ordering::Relaxed)),
            }
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(self) -> Report {
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.damage.sort_by(|a, b| a.object.cmp(&b.object));
        // A NAR that several paths share is one damage.
        report.damage.dedup_by(|a, b| (&a.object, a.kind) == (&b.object, b.kind));
        report.differing.sort_unstable();
        report
    }

    /// Copies the pins. A pin that both caches have keeps the paths of both.
    async fn pins(&self) -> Result<(), MigrateError> {
        let ours = Pins::of(self.to).list().await?;
        for pin in Pins::of(self.from).list().await? {
            let mut paths = pin.paths;
            if paths.is_empty() {
                continue;
            }
            if let Some(ours) = ours.iter().find(|ours| ours.name == pin.name) {
                paths.extend(ours.paths.iter().cloned());
                paths.sort();
                paths.dedup();
            }
            Pins::of(self.to).set(&pin.name, &paths).await?;
            self.report().pins += 1;
        }
        Ok(())
    }

    /// Takes over a path with all that belongs to it.
    async fn path(&self, index: usize) -> Result<(), MigrateError> {
        let held = &self.inventory.paths[index];
        let nar = match held.nar {
            Some(place) => Some(self.shared(place).await?),
            None => None,
        };
        if let Some(place) = held.log {
            self.shared(place).await?;
        }
        for side in &held.sides {
            self.side_file(side).await?;
        }
        self.wait_for_references(index).await;
        self.narinfo(index, nar).await?;
        self.bytes_done.fetch_add(held.size, Ordering::Relaxed);
        self.done.send_modify(|done| done[index] = true);
        Ok(())
    }

    /// Until everything that a path refers to is here: it was started before. Paths that refer to each
    /// other do not wait for each other.
    async fn wait_for_references(&self, index: usize) {
        let others = self.inventory.paths[index].references.iter().map(|&path| path as usize);
        let others: Vec<usize> =
            others.filter(|&other| self.group_of[other] != self.group_of[index]).collect();
        // It has a sender as long as we are here.
        let _ = self.done.subscribe().wait_for(|done| others.iter().all(|&path| done[path])).await;
    }

    /// Takes over a NAR or a log, once, with what belongs to it.
    async fn shared(&self, place: u32) -> Result<&Outcome, MigrateError> {
        let place = place as usize;
        let object = &self.inventory.shared[place];
        let copied = self.shared[place].get_or_try_init(async || {
            let outcome = match &object.path {
                CachePath::Nar(name) => self.nar(*name).await?,
                path => self.side_file(path).await?,
            };
            for side in &object.sides {
                self.side_file(side).await?;
            }
            self.bytes_done.fetch_add(object.size, Ordering::Relaxed);
            Ok(outcome)
        });
        copied.await
    }

    /// Takes over an object that belongs to no path.
    async fn unowned(&self, path: &CachePath, size: u64) -> Result<(), MigrateError> {
        match path {
            // The others are with their paths.
            CachePath::NarInfo(_) => self.false_narinfo(path).await?,
            _ => drop(self.side_file(path).await?),
        }
        self.bytes_done.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Takes over a NAR. One that is here with its size is what it is named, or its narinfo will not
    /// be taken.
    async fn nar(&self, name: NarName) -> Result<Outcome, MigrateError> {
        let path = CachePath::Nar(name);
        let Some(object) = self.from.store().get(&path).await? else {
            return Ok(Outcome::Gone);
        };
        let size = object.metadata.size;
        match self.to.store().head(&path).await? {
            Some(here) if here.size == size => return Ok(Outcome::Here),
            _ => {}
        }
        self.send(&path, object).await
    }

    /// Uploads an object here.
    async fn send(&self, path: &CachePath, object: Object) -> Result<Outcome, MigrateError> {
        let size = object.metadata.size;
        let put = self.to.put(path, Compression::None, Some(size), body(object)).await;
        let (kind, expected, actual) = match put {
            Ok(_) => {
                let mut report = self.report();
                report.objects += 1;
                report.bytes += size;
                return Ok(Outcome::Here);
            }
            Err(PutError::FileHash { expected, actual }) => {
                return Ok(Outcome::Misnamed { expected, actual });
            }
            Err(PutError::Unpack(error)) => {
                (DamageKind::Unpack, "a NAR".to_owned(), with_causes(&error))
            }
            Err(PutError::Length { declared, actual }) => {
                (DamageKind::Unreadable, format!("{declared} bytes"), format!("{actual} bytes"))
            }
            Err(PutError::Body(BodyError::CutShort(error))) => {
                let whole = "a readable file".to_owned();
                (DamageKind::Unreadable, whole, with_causes(&*error))
            }
            Err(PutError::Store(error)) => return Err(error.into()),
            Err(source) => return Err(MigrateError::NotTaken { object: path.clone(), source }),
        };
        Ok(self.damaged(kind, path, None, expected, actual))
    }

    fn damaged(
        &self,
        kind: DamageKind,
        object: &CachePath,
        store_path: Option<String>,
        expected: String,
        actual: String,
    ) -> Outcome {
        self.report().damage.push(Damage {
            kind,
            object: object.clone(),
            store_path,
            expected: expected.clone(),
            actual: actual.clone(),
            repaired: false,
        });
        Outcome::Damaged { expected, actual }
    }

    /// Takes over a side file, if there is not the same here.
    async fn side_file(&self, path: &CachePath) -> Result<Outcome, MigrateError> {
        let Some(object) = self.from.store().get(path).await? else {
            return Ok(Outcome::Gone);
        };
        let size = object.metadata.size;
        let is_json = path.content_type() == "application/json";
        let theirs = match hash_of(object, is_json).await {
            Ok(theirs) => theirs,
            Err(error) if error.is_io() => {
                let whole = "a readable file".to_owned();
                return Ok(self.damaged(
                    DamageKind::Unreadable,
                    path,
                    None,
                    whole,
                    error.to_string(),
                ));
            }
            Err(error) => {
                let (json, found) = ("JSON".to_owned(), error.to_string());
                return Ok(self.damaged(DamageKind::Json, path, None, json, found));
            }
        };
        if let Some(ours) = self.to.store().get(path).await?
            && ours.metadata.size == size
            && hash_of(ours, false).await.is_ok_and(|ours| ours == theirs)
        {
            return Ok(Outcome::Here);
        }
        match self.from.store().get(path).await? {
            Some(object) => self.send(path, object).await,
            None => Ok(Outcome::Gone),
        }
    }

    /// Takes over a path's narinfo, when its NAR is here.
    async fn narinfo(&self, index: usize, nar: Option<&Outcome>) -> Result<(), MigrateError> {
        let held = &self.inventory.paths[index];
        let path = CachePath::NarInfo(held.store_path.hash());
        let store_path = || Some(self.to.info().store_dir.join(&held.store_path));
        // It may have gone since it was found.
        let Some(text) = self.from.read_narinfo_text(&path).await? else {
            return Ok(());
        };
        let mut info = match NarInfo::parse(&text, &self.from.info().store_dir) {
            Ok(info) => info,
            Err(error) => {
                let damage = Damage::of_narinfo(path, store_path(), error.into());
                self.report().damage.push(damage);
                return Ok(());
            }
        };
        let actual = info.store_path.hash();
        if actual != held.store_path.hash() {
            let error = PutError::HashPart { expected: held.store_path.hash(), actual };
            self.report().damage.push(Damage::of_narinfo(path, store_path(), error));
            return Ok(());
        }
        let renamed = match nar {
            Some(Outcome::Damaged { expected, actual }) => {
                Outcome::Damaged { expected: expected.clone(), actual: actual.clone() }
            }
            Some(Outcome::Misnamed { .. }) => self.nar_by_another_name(&mut info).await?,
            _ if info.nar_name().is_none() => self.nar_by_another_name(&mut info).await?,
            _ => Outcome::Here,
        };
        if let Outcome::Damaged { expected, actual } = renamed {
            if let (Some(Outcome::Misnamed { expected, actual }), Some(name)) =
                (nar, info.nar_name())
            {
                let (expected, actual) = (expected.to_string(), actual.to_string());
                self.damaged(DamageKind::Nar, &CachePath::Nar(name), None, expected, actual);
            }
            self.damaged(DamageKind::NarDamaged, &path, store_path(), expected, actual);
            return Ok(());
        }
        let size = info.to_string().len() as u64;
        match self.adopt(info).await {
            Ok(Adopted::New) => {
                let mut report = self.report();
                report.paths += 1;
                report.bytes += size;
            }
            Ok(Adopted::Known) => self.report().present += 1,
            Ok(Adopted::Differs) => self.report().differing.extend(store_path()),
            Err(PutError::Store(error)) => return Err(error.into()),
            Err(source @ (PutError::Read { .. } | PutError::Body(_))) => {
                return Err(MigrateError::NotTaken { object: path, source });
            }
            Err(error) => {
                let damage = Damage::of_narinfo(path, store_path(), error);
                self.report().damage.push(damage);
            }
        }
        Ok(())
    }

    /// Takes over a NAR that is not named after its file hash, under the name that Nix gives it, which
    /// `info` names from then on.
    async fn nar_by_another_name(&self, info: &mut NarInfo) -> Result<Outcome, MigrateError> {
        let missing = || Outcome::Damaged {
            expected: info.url.clone(),
            actual: "nothing, or a URL outside of the cache".to_owned(),
        };
        let Ok(compression) = info.compression.parse::<Compression>() else {
            return Ok(Outcome::Damaged {
                expected: "a compression that Nix supports".to_owned(),
                actual: info.compression.clone(),
            });
        };
        let key = match info.fetched_nar() {
            Some(nar) => Some(CachePath::Nar(nar).key()),
            None => foreign_key(&info.url),
        };
        let Some(key) = key else {
            return Ok(missing());
        };
        let Some(object) = self.from.store().get_foreign(&key).await? else {
            return Ok(missing());
        };
        let file_hash = match info.file_hash {
            Some(file_hash) => file_hash,
            None => match hash_of(object, false).await {
                Ok(hash) => hash,
                Err(error) => {
                    let expected = "a readable file".to_owned();
                    return Ok(Outcome::Damaged { expected, actual: error.to_string() });
                }
            },
        };
        let name = NarName { file_hash, extension: compression.extension() };
        let path = CachePath::Nar(name);
        let outcome = match (
            self.to.store().head(&path).await?,
            self.from.store().get_foreign(&key).await?,
        ) {
            (_, None) => return Ok(missing()),
            (Some(here), Some(object)) if here.size == object.metadata.size => Outcome::Here,
            (_, Some(object)) => self.send(&path, object).await?,
        };
        if let Outcome::Misnamed { expected, actual } = outcome {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            return Ok(Outcome::Damaged { expected, actual });
        }
        info.url = path.key();
        info.file_hash = Some(file_hash);
        Ok(outcome)
    }

    async fn adopt(&self, info: NarInfo) -> Result<Adopted, PutError> {
        match self.to.adopt_narinfo(info.clone()).await {
            // A NAR in this cache did not match its name, and has been quarantined.
            Err(PutError::NarDamaged(_)) => {}
            adopted => return adopted,
        }
        if let Some(name) = info.nar_name()
            && let Err(MigrateError::Store(error)) = self.nar(name).await
        {
            return Err(error.into());
        }
        self.to.adopt_narinfo(info).await
    }

    /// A narinfo that the inventory could not read.
    async fn false_narinfo(&self, path: &CachePath) -> Result<(), MigrateError> {
        let Some(object) = self.from.store().get(path).await? else {
            return Ok(());
        };
        let Content::Bytes(text) = object.content else {
            return Ok(());
        };
        let error = match (path, NarInfo::parse(&text, &self.to.info().store_dir)) {
            (CachePath::NarInfo(hash), Ok(info)) => {
                PutError::HashPart { expected: *hash, actual: info.store_path.hash() }
            }
            (_, Err(error)) => error.into(),
            _ => return Ok(()),
        };
        self.report().damage.push(Damage::of_narinfo(path.clone(), None, error));
        Ok(())
    }
}

/// An object's bytes as the body of an upload.
fn body(object: Object) -> BoxStream<'static, Result<Bytes, BodyError>> {
    let bytes = object.content.into_stream(0..object.metadata.size);
    bytes.map_err(|error| BodyError::CutShort(error.into())).boxed()
}

/// The hash of an object's bytes, which may have to be JSON.
async fn hash_of(object: Object, is_json: bool) -> serde_json::Result<Sha256Hash> {
    let look = move || {
        let mut hasher = Sha256::new();
        let object = object_reader(object.content, object.metadata.size);
        let mut bytes = InspectReader::new(object, |bytes: &[u8]| hasher.update(bytes));
        if is_json {
            let IgnoredAny = serde_json::from_reader(BufReader::new(&mut bytes))?;
        }
        io::copy(&mut bytes, &mut io::sink()).map_err(serde_json::Error::io)?;
        drop(bytes);
        Ok(Sha256Hash::new(hasher.finalize().into()))
    };
    tokio::task::spawn_blocking(look)
        .await
        .expect("reading does not panic, and the pool outlives it")
}
