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

use super::report::{MigrateError, MigrateReport};
use crate::cache::{Adopted, BodyError, Cache, PutError};
use crate::inventory::{Inventory, Progress, reference_groups};
use crate::logging::with_causes;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression, NarInfo, Sha256Hash};
use crate::retention::Pins;
use crate::store::{Content, Object, foreign_key};
use crate::unpack::{InspectReader, object_reader};
use crate::verify::{Damage, DamageKind};

/// The interval of progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The result of copying one object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CopyOutcome {
    /// The object is in the target.
    Present,
    /// The object has disappeared from the source.
    Absent,
    /// A NAR whose file hash differs from its name. Whether it is damaged depends on its narinfo,
    /// because other programs name NARs differently.
    Misnamed { expected: Sha256Hash, actual: Sha256Hash },
    /// The object is damaged, or cannot be read.
    Damaged { expected: String, actual: String },
}

/// Copies the objects that `from` has and `to` lacks, `jobs` at a time. Both caches may be in use.
pub(crate) async fn migrate(
    from: &Cache,
    to: &Cache,
    jobs: usize,
    stop: &CancellationToken,
    mut on_progress: impl FnMut(Progress),
) -> Result<MigrateReport, MigrateError> {
    let found = |objects| on_progress(Progress::Found(objects));
    let inventory = from.inventory(found).await?;
    let migration = Migration::new(from, to, &inventory);
    for (path, error) in &inventory.unreadable {
        migration.report().damage.push(Damage::unreadable(path.clone(), error));
    }
    // Pins are copied before the paths, so that a collection in the target keeps the paths.
    migration.copy_pins().await?;
    let total = inventory.size();
    let order: Vec<u32> = migration.groups.iter().flatten().copied().collect();
    let paths = stream::iter(order).map(|path| migration.copy_path(path as usize));
    let copied = |done| on_progress(Progress::Done { done, total });
    let all_paths = migration.execute(paths.buffer_unordered(jobs), stop, copied).await?;
    let unowned = stream::iter(&inventory.unowned);
    let unowned = unowned.map(|object| migration.copy_unowned(&object.path, object.size));
    let copied = |done| on_progress(Progress::Done { done, total });
    let stopped =
        !all_paths || !migration.execute(unowned.buffer_unordered(jobs), stop, copied).await?;
    Ok(MigrateReport { stopped, ..migration.finish() })
}

/// A running migration.
struct Migration<'a> {
    from: &'a Cache,
    to: &'a Cache,
    inventory: &'a Inventory,
    /// Groups of paths that refer to each other; references come first.
    groups: Vec<Vec<u32>>,
    /// The group of each path.
    group_of: Vec<u32>,
    /// The results for the shared objects, which are copied once.
    shared: Vec<OnceCell<CopyOutcome>>,
    /// For each path, whether it is done.
    done: watch::Sender<Vec<bool>>,
    /// The number of bytes of the source that are done.
    bytes_done: AtomicU64,
    report: Mutex<MigrateReport>,
}

impl<'a> Migration<'a> {
    fn new(from: &'a Cache, to: &'a Cache, inventory: &'a Inventory) -> Self {
        let groups = reference_groups(inventory);
        let mut group_of = vec![0; inventory.paths.len()];
        for (rank, group) in (0..).zip(&groups) {
            group.iter().for_each(|&path| group_of[path as usize] = rank);
        }
        let named = (0..inventory.paths.len()).flat_map(|path| inventory.shared_by(path));
        let mut report =
            MigrateReport { orphans: inventory.shared.len(), ..MigrateReport::default() };
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

    /// Runs `work` until its end or until `stop`. Returns whether all of it was completed.
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

    fn report(&self) -> MutexGuard<'_, MigrateReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(self) -> MigrateReport {
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.damage.sort_by(|a, b| a.object.cmp(&b.object));
        // A damaged NAR that several paths share is reported once.
        report.damage.dedup_by(|a, b| (&a.object, a.kind) == (&b.object, b.kind));
        report.differing.sort_unstable();
        report
    }

    /// Copies the pins. If both caches have a pin of the same name, the target's pin gets the paths
    /// of both.
    async fn copy_pins(&self) -> Result<(), MigrateError> {
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

    /// Copies a path with all objects that belong to it.
    async fn copy_path(&self, index: usize) -> Result<(), MigrateError> {
        let held = &self.inventory.paths[index];
        let nar = match held.nar {
            Some(index) => Some(self.copy_shared(index).await?),
            None => None,
        };
        if let Some(index) = held.log {
            self.copy_shared(index).await?;
        }
        for side_file in &held.side_files {
            self.copy_side_file(side_file).await?;
        }
        self.wait_for_references(index).await;
        self.copy_narinfo(index, nar).await?;
        self.bytes_done.fetch_add(held.size, Ordering::Relaxed);
        self.done.send_modify(|done| done[index] = true);
        Ok(())
    }

    /// Waits until all references of a path are in the target. Their copies were started before.
    /// Paths that refer to each other do not wait for each other.
    async fn wait_for_references(&self, index: usize) {
        let others = self.inventory.paths[index].references.iter().map(|&path| path as usize);
        let others: Vec<usize> =
            others.filter(|&other| self.group_of[other] != self.group_of[index]).collect();
        // Cannot fail: `self` owns the sender.
        let _ = self.done.subscribe().wait_for(|done| others.iter().all(|&path| done[path])).await;
    }

    /// Copies a NAR or a log, once, with its side files.
    async fn copy_shared(&self, index: u32) -> Result<&CopyOutcome, MigrateError> {
        let index = index as usize;
        let object = &self.inventory.shared[index];
        let copied = self.shared[index].get_or_try_init(async || {
            let outcome = match &object.path {
                CachePath::Nar(name) => self.copy_nar(*name).await?,
                path => self.copy_side_file(path).await?,
            };
            for side_file in &object.side_files {
                self.copy_side_file(side_file).await?;
            }
            self.bytes_done.fetch_add(object.size, Ordering::Relaxed);
            Ok(outcome)
        });
        copied.await
    }

    /// Copies an object that belongs to no path.
    async fn copy_unowned(&self, path: &CachePath, size: u64) -> Result<(), MigrateError> {
        match path {
            // Of the narinfos, only those that do not parse belong to no path.
            CachePath::NarInfo(_) => self.report_narinfo(path).await?,
            _ => drop(self.copy_side_file(path).await?),
        }
        self.bytes_done.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Copies a NAR, unless the target has a NAR of this name and size. Whether that NAR is intact
    /// is checked when the target accepts the narinfo.
    async fn copy_nar(&self, name: NarName) -> Result<CopyOutcome, MigrateError> {
        let path = CachePath::Nar(name);
        let Some(object) = self.from.store().get(&path).await? else {
            return Ok(CopyOutcome::Absent);
        };
        let size = object.metadata.size;
        match self.to.store().head(&path).await? {
            Some(stored) if stored.size == size => return Ok(CopyOutcome::Present),
            _ => {}
        }
        self.upload(&path, object).await
    }

    /// Uploads an object to the target.
    async fn upload(&self, path: &CachePath, object: Object) -> Result<CopyOutcome, MigrateError> {
        let size = object.metadata.size;
        let put = self.to.put(path, Compression::None, Some(size), body(object)).await;
        let (kind, expected, actual) = match put {
            Ok(_) => {
                let mut report = self.report();
                report.objects += 1;
                report.bytes += size;
                return Ok(CopyOutcome::Present);
            }
            Err(PutError::FileHash { expected, actual }) => {
                return Ok(CopyOutcome::Misnamed { expected, actual });
            }
            Err(PutError::Unpack(error)) => {
                (DamageKind::Unpack, "a NAR".to_owned(), with_causes(&error))
            }
            Err(PutError::Length { declared, actual }) => {
                (DamageKind::Unreadable, format!("{declared} bytes"), format!("{actual} bytes"))
            }
            Err(PutError::Body(BodyError::CutShort(error))) => {
                let expected = "a readable file".to_owned();
                (DamageKind::Unreadable, expected, with_causes(&*error))
            }
            Err(PutError::Store(error)) => return Err(error.into()),
            Err(source) => return Err(MigrateError::Refused { object: path.clone(), source }),
        };
        Ok(self.report_damage(kind, path, None, expected, actual))
    }

    fn report_damage(
        &self,
        kind: DamageKind,
        object: &CachePath,
        store_path: Option<String>,
        expected: String,
        actual: String,
    ) -> CopyOutcome {
        self.report().damage.push(Damage {
            kind,
            object: object.clone(),
            store_path,
            expected: expected.clone(),
            actual: actual.clone(),
            repaired: false,
        });
        CopyOutcome::Damaged { expected, actual }
    }

    /// Copies a side file, unless the target has the same one.
    async fn copy_side_file(&self, path: &CachePath) -> Result<CopyOutcome, MigrateError> {
        let Some(object) = self.from.store().get(path).await? else {
            return Ok(CopyOutcome::Absent);
        };
        let size = object.metadata.size;
        let is_json = path.content_type() == "application/json";
        let theirs = match hash_of(object, is_json).await {
            Ok(theirs) => theirs,
            Err(error) if error.is_io() => {
                let expected = "a readable file".to_owned();
                return Ok(self.report_damage(
                    DamageKind::Unreadable,
                    path,
                    None,
                    expected,
                    error.to_string(),
                ));
            }
            Err(error) => {
                let (json, found) = ("JSON".to_owned(), error.to_string());
                return Ok(self.report_damage(DamageKind::Json, path, None, json, found));
            }
        };
        if let Some(ours) = self.to.store().get(path).await?
            && ours.metadata.size == size
            && hash_of(ours, false).await.is_ok_and(|ours| ours == theirs)
        {
            return Ok(CopyOutcome::Present);
        }
        match self.from.store().get(path).await? {
            Some(object) => self.upload(path, object).await,
            None => Ok(CopyOutcome::Absent),
        }
    }

    /// Copies the narinfo of a path, after its NAR.
    async fn copy_narinfo(
        &self,
        index: usize,
        nar: Option<&CopyOutcome>,
    ) -> Result<(), MigrateError> {
        let held = &self.inventory.paths[index];
        let path = CachePath::NarInfo(held.store_path.hash());
        let store_path = || Some(self.to.info().store_dir.join(&held.store_path));
        // The narinfo may have been removed since the inventory was read.
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
            Some(CopyOutcome::Damaged { expected, actual }) => {
                CopyOutcome::Damaged { expected: expected.clone(), actual: actual.clone() }
            }
            Some(CopyOutcome::Misnamed { .. }) => self.copy_renamed_nar(&mut info).await?,
            _ if info.nar_name().is_none() => self.copy_renamed_nar(&mut info).await?,
            _ => CopyOutcome::Present,
        };
        if let CopyOutcome::Damaged { expected, actual } = renamed {
            if let (Some(CopyOutcome::Misnamed { expected, actual }), Some(name)) =
                (nar, info.nar_name())
            {
                let (expected, actual) = (expected.to_string(), actual.to_string());
                self.report_damage(DamageKind::Nar, &CachePath::Nar(name), None, expected, actual);
            }
            self.report_damage(DamageKind::NarDamaged, &path, store_path(), expected, actual);
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
                return Err(MigrateError::Refused { object: path, source });
            }
            Err(error) => {
                let damage = Damage::of_narinfo(path, store_path(), error);
                self.report().damage.push(damage);
            }
        }
        Ok(())
    }

    /// Copies a NAR that is not named after its file hash, under the name that Nix gives it.
    /// Updates the URL and the file hash in `info`.
    async fn copy_renamed_nar(&self, info: &mut NarInfo) -> Result<CopyOutcome, MigrateError> {
        let missing = || CopyOutcome::Damaged {
            expected: info.url.clone(),
            actual: "nothing, or a URL outside of the cache".to_owned(),
        };
        let Ok(compression) = info.compression.parse::<Compression>() else {
            return Ok(CopyOutcome::Damaged {
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
                    return Ok(CopyOutcome::Damaged { expected, actual: error.to_string() });
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
            (Some(stored), Some(object)) if stored.size == object.metadata.size => {
                CopyOutcome::Present
            }
            (_, Some(object)) => self.upload(&path, object).await?,
        };
        if let CopyOutcome::Misnamed { expected, actual } = outcome {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            return Ok(CopyOutcome::Damaged { expected, actual });
        }
        info.url = path.key();
        info.file_hash = Some(file_hash);
        Ok(outcome)
    }

    async fn adopt(&self, info: NarInfo) -> Result<Adopted, PutError> {
        match self.to.adopt_narinfo(info.clone()).await {
            // The NAR in the target did not match its name, and has been quarantined. It is copied
            // now.
            Err(PutError::NarDamaged(_)) => {}
            adopted => return adopted,
        }
        if let Some(name) = info.nar_name()
            && let Err(MigrateError::Store(error)) = self.copy_nar(name).await
        {
            return Err(error.into());
        }
        self.to.adopt_narinfo(info).await
    }

    /// Reports the damage of a narinfo that is not in the inventory of paths.
    async fn report_narinfo(&self, path: &CachePath) -> Result<(), MigrateError> {
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

/// Converts the bytes of an object into the body of an upload.
fn body(object: Object) -> BoxStream<'static, Result<Bytes, BodyError>> {
    let bytes = object.content.into_stream(0..object.metadata.size);
    bytes.map_err(|error| BodyError::CutShort(error.into())).boxed()
}

/// Hashes the bytes of an object. If `must_be_json`, fails for bytes that are not JSON.
async fn hash_of(object: Object, must_be_json: bool) -> serde_json::Result<Sha256Hash> {
    let hash = move || {
        let mut hasher = Sha256::new();
        let object = object_reader(object.content, object.metadata.size);
        let mut bytes = InspectReader::new(object, |bytes: &[u8]| hasher.update(bytes));
        if must_be_json {
            let IgnoredAny = serde_json::from_reader(BufReader::new(&mut bytes))?;
        }
        io::copy(&mut bytes, &mut io::sink()).map_err(serde_json::Error::io)?;
        drop(bytes);
        Ok(Sha256Hash::new(hasher.finalize().into()))
    };
    tokio::task::spawn_blocking(hash)
        .await
        .expect("reading does not panic, and the pool outlives it")
}
