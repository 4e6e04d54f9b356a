//! A verification of a whole cache, on threads of the lowest priority.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::examine::{Examiner, Findings, Subject};
use super::report::{Damage, Note, VerifyReport};
use super::survey::Survey;
use crate::cache::{Actor, Cache};
use crate::config::Verify;
use crate::inventory::Progress;
use crate::nix::CachePath;
use crate::nix::cache_path::NarName;
use crate::nix::store_path::ParseStorePathError;
use crate::retention::Collector;
use crate::store::{StoreError, background};

/// The number of threads that read and hash. More threads would delay uploads and downloads.
const EXAMINER_THREADS: usize = 2;

/// The interval of progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The maximum number of examinations of a subject that keeps changing.
const MAX_EXAMINATIONS: usize = 5;

/// The options of a verification.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VerifyOptions {
    /// The depth of the verification: whether NARs are unpacked.
    pub depth: Verify,
    /// Whether damaged objects are quarantined.
    pub repair: bool,
}

/// A failed verification.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// A collection is running.
    #[error(
        "a garbage collection is running in this cache, and nothing can be quarantined \
         meanwhile; try again when it has finished"
    )]
    Busy,
    /// No path of the cache is in the configured store directory.
    #[error(
        "the cache is for another store directory; set NIX_STORED_STORE_DIR to that of its daemon"
    )]
    StoreDir(#[source] ParseStorePathError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread cannot be started, or panicked.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Verifies the objects of a cache. A clone verifies the same cache.
#[derive(Clone)]
pub(crate) struct Verifier {
    cache: Arc<Cache>,
    /// The actor in the audit log.
    actor: Actor,
    options: VerifyOptions,
}

impl Verifier {
    /// Creates a verifier of a cache. The audit log names `actor`.
    pub(crate) fn new(cache: Arc<Cache>, actor: Actor, options: VerifyOptions) -> Self {
        Self { cache, actor, options }
    }

    /// Verifies all objects.
    pub(crate) async fn verify(
        &self,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<VerifyReport, VerifyError> {
        let collector = Collector::new(Arc::clone(&self.cache), self.actor.clone());
        let _lock = match self.options.repair {
            true => Some(collector.lock().await?.ok_or(VerifyError::Busy)?),
            false => None,
        };
        let found = |count| on_progress(Progress::Found(count));
        let mut survey = Survey::of(&self.cache, found).await?;
        if let Some(error) = survey.take_other_store_dir() {
            return Err(VerifyError::StoreDir(error));
        }
        let mut report = VerifyReport { checked: survey.checked, ..VerifyReport::default() };
        report.damage.extend(survey.take_unreadable());
        for (path, etag) in survey.take_non_files() {
            self.report_non_file(path, &etag, &mut report).await;
        }
        let total = survey.bytes;
        let (subjects, notes) = survey.finish(&self.cache.info().store_dir);
        report.notes = notes;
        let read = Arc::new(AtomicU64::new(0));
        let examined = |done| on_progress(Progress::Done { done, total });
        let suspects = self.examine_all(subjects, &read, examined, &mut report.notes).await?;
        report.checked.bytes = read.load(Ordering::Relaxed);
        if suspects.is_empty() {
            return Ok(report);
        }
        let verifier = self.clone();
        let examined_again =
            in_background(move || async move { verifier.examine_again(suspects, report).await });
        Ok(examined_again.await??)
    }

    /// Reports names of objects that are not files, and quarantines them if requested.
    async fn report_non_file(&self, path: CachePath, etag: &Bytes, report: &mut VerifyReport) {
        let mut damage = Damage::no_file(path);
        if self.options.repair && report.not_quarantined.is_none() {
            match self.cache.quarantine(&damage.object, etag).await {
                Ok(moved) => damage.repaired = moved,
                Err(error) => report.not_quarantined = Some(error),
            }
        }
        if damage.repaired {
            self.actor.log_quarantine(&damage.object, None);
        }
        report.damage.push(damage);
    }

    /// Examines all subjects, and returns the suspects.
    async fn examine_all(
        &self,
        subjects: Vec<Subject>,
        read: &Arc<AtomicU64>,
        mut on_progress: impl FnMut(u64),
        notes: &mut Vec<Note>,
    ) -> Result<Vec<Subject>, VerifyError> {
        let (sender, mut found) = mpsc::channel(EXAMINER_THREADS);
        let (subjects, next) = (Arc::new(subjects), Arc::new(AtomicUsize::new(0)));
        for _ in 0..EXAMINER_THREADS {
            let (cache, runtime) = (Arc::clone(&self.cache), tokio::runtime::Handle::current());
            let depth = self.options.depth;
            let (subjects, next) = (Arc::clone(&subjects), Arc::clone(&next));
            let (sender, read) = (sender.clone(), Arc::clone(read));
            background::spawn("verify", move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(subject) = subjects.get(index) else {
                        return;
                    };
                    let examiner = Examiner { cache: &cache, depth, bytes: &read };
                    let examined = runtime.block_on(examiner.examine(subject));
                    if sender.blocking_send((index, examined)).is_err() {
                        return;
                    }
                }
            })
            .map_err(VerifyError::Thread)?;
        }
        drop(sender);

        let mut suspects_found = BTreeSet::new();
        let (mut examined, mut failed) = (0, None);
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                found = found.recv() => match found {
                    None => break,
                    Some((index, Ok(Findings { suspects, notes: more }))) => {
                        examined += 1;
                        if suspects.is_empty() {
                            notes.extend(more);
                        } else {
                            suspects_found.insert(index);
                        }
                    }
                    Some((_, Err(error))) => {
                        // No new examination starts, and running ones end before this function
                        // returns.
                        next.store(subjects.len(), Ordering::Relaxed);
                        failed = Some(error);
                    }
                },
                _ = tick.tick() => on_progress(read.load(Ordering::Relaxed)),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        if examined < subjects.len() {
            return Err(VerifyError::Thread(io::Error::other("the thread panicked")));
        }
        Ok(suspects_found.into_iter().map(|index| subjects[index].clone()).collect())
    }

    /// Examines the suspects once more, and quarantines the damaged ones.
    async fn examine_again(
        &self,
        suspects: Vec<Subject>,
        mut report: VerifyReport,
    ) -> Result<VerifyReport, StoreError> {
        for subject in suspects {
            self.examine_until_stable(&subject, &mut report).await?;
        }
        let quarantined = report.damage.iter().filter_map(|damage| match damage.object {
            CachePath::Nar(name) if damage.repaired => Some(name),
            _ => None,
        });
        let quarantined: BTreeSet<NarName> = quarantined.collect();
        if quarantined.is_empty() {
            return Ok(report);
        }
        // A narinfo that was uploaded during the verification may name a quarantined NAR.
        let mut survey = Survey::of(&self.cache, |_| {}).await?;
        for name in quarantined {
            let narinfos = survey.take_narinfos_naming(&name);
            if !narinfos.is_empty() {
                self.examine_until_stable(&Subject::Nar(name, narinfos), &mut report).await?;
            }
        }
        Ok(report)
    }

    /// Examines `subject` until it does not change during the examination, and reports the result.
    async fn examine_until_stable(
        &self,
        subject: &Subject,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        let bytes = AtomicU64::new(0);
        let depth = self.options.depth;
        let examiner = Examiner { cache: &self.cache, depth, bytes: &bytes };
        for _ in 0..MAX_EXAMINATIONS {
            let findings = examiner.examine(subject).await?;
            if self.report_findings(findings, self.options.repair, report).await {
                return Ok(());
            }
        }
        let findings = examiner.examine(subject).await?;
        self.report_findings(findings, false, report).await;
        Ok(())
    }

    /// Reports the findings, and quarantines the objects if requested. Returns false without
    /// reporting the rest if an object has changed since its examination.
    async fn report_findings(
        &self,
        findings: Findings,
        repair: bool,
        report: &mut VerifyReport,
    ) -> bool {
        let mut kept = Vec::new();
        // Narinfos are quarantined before their NAR, so that no visible narinfo lacks its NAR.
        for mut suspect in findings.suspects {
            let moved = match &suspect.etag {
                Some(etag) if repair && report.not_quarantined.is_none() => {
                    self.cache.quarantine(&suspect.damage.object, etag).await
                }
                _ => {
                    kept.push(suspect.damage);
                    continue;
                }
            };
            match moved {
                Ok(true) => {
                    let damage = &suspect.damage;
                    self.actor.log_quarantine(&damage.object, damage.store_path.as_deref());
                    suspect.damage.repaired = true;
                    report.damage.push(suspect.damage);
                }
                Ok(false) => return false,
                Err(error) => {
                    report.not_quarantined = Some(error);
                    kept.push(suspect.damage);
                }
            }
        }
        report.damage.extend(kept);
        report.notes.extend(findings.notes);
        true
    }
}

/// Runs `work` on a background thread, where it may block on the disk and hash.
async fn in_background<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T, VerifyError>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let (done, result) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    background::spawn("verify", move || {
        // Fails if the caller no longer waits: then the receiver was dropped.
        let _ = done.send(runtime.block_on(work()));
    })
    .map_err(VerifyError::Thread)?;
    result.await.map_err(|_| VerifyError::Thread(io::Error::other("the thread panicked")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Admission;
    use crate::nix::{CacheInfo, Sha256Hash, StorePathHash};
    use crate::store::FsStore;

    const REPAIR: VerifyOptions = VerifyOptions { depth: Verify::File, repair: true };

    /// A cache with one NAR and its narinfo.
    struct VerifiedCache {
        dir: tempfile::TempDir,
        verifier: Verifier,
        nar: String,
    }

    impl VerifiedCache {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(FsStore::open(dir.path(), 0).unwrap().into());
            let cache = Arc::new(Cache::new(store, CacheInfo::default(), Admission::default()));
            let nar = format!("nar/{}.nar", Sha256Hash::of(b"right").to_nix32());
            let verifier = Verifier::new(cache, Actor::silent(), REPAIR);
            let cache = Self { dir, verifier, nar };
            cache.write(&cache.nar, "right");
            cache.narinfo(1);
            cache
        }

        fn path(&self) -> &Path {
            self.dir.path()
        }

        /// Replaces a file atomically, as an upload does.
        fn write(&self, key: &str, text: &str) {
            let staged = self.path().join(".nix-stored/staged");
            std::fs::write(&staged, text).unwrap();
            std::fs::rename(staged, self.path().join(key)).unwrap();
        }

        fn narinfo(&self, number: u8) -> String {
            let (hash, nar) = (StorePathHash::new([number; 20]), &self.nar);
            let file_hash = Sha256Hash::of(b"right");
            let key = format!("{hash}.narinfo");
            self.write(
                &key,
                &format!(
                    "StorePath: /nix/store/{hash}-x\nURL: {nar}\nCompression: none\n\
                     FileHash: {file_hash}\nFileSize: 5\nNarHash: {file_hash}\nNarSize: 5\n"
                ),
            );
            key
        }

        /// The suspects of the first examination.
        async fn suspects(&self) -> Vec<Subject> {
            let cache = &self.verifier.cache;
            let survey = Survey::of(cache, |_| {}).await.unwrap();
            let (subjects, _) = survey.finish(&cache.info().store_dir);
            let (read, mut notes) = (Arc::default(), Vec::new());
            let examined = self.verifier.examine_all(subjects, &read, |_| {}, &mut notes);
            examined.await.unwrap()
        }

        async fn examine(&self, subject: &Subject) -> Result<Findings, StoreError> {
            let (cache, bytes) = (&*self.verifier.cache, &AtomicU64::new(0));
            Examiner { cache, depth: Verify::File, bytes }.examine(subject).await
        }

        async fn examine_again(&self, suspects: Vec<Subject>) -> VerifyReport {
            self.verifier.examine_again(suspects, VerifyReport::default()).await.unwrap()
        }

        fn has(&self, key: &str) -> bool {
            self.path().join(key).exists()
        }
    }

    #[tokio::test]
    async fn objects_repaired_since_the_first_examination_are_not_damage() {
        let cache = VerifiedCache::new();
        assert!(cache.suspects().await.is_empty());
        for damaged in ["false", ""] {
            cache.write(&cache.nar, damaged);
            let suspects = cache.suspects().await;
            assert_eq!(suspects.len(), 1);
            cache.write(&cache.nar, "right");
            assert_eq!(cache.examine_again(suspects).await.damage, []);
        }
        std::fs::remove_file(cache.path().join(&cache.nar)).unwrap();
        let suspects = cache.suspects().await;
        assert_eq!(suspects.len(), 1);
        cache.write(&cache.nar, "right");
        assert_eq!(cache.examine_again(suspects).await.damage, []);
        // The path was collected.
        let narinfo = cache.narinfo(1);
        std::fs::remove_file(cache.path().join(&cache.nar)).unwrap();
        let suspects = cache.suspects().await;
        std::fs::remove_file(cache.path().join(narinfo)).unwrap();
        assert_eq!(cache.examine_again(suspects).await.damage, []);
    }

    #[tokio::test]
    async fn narinfos_uploaded_since_the_first_examination_are_quarantined_with_their_nar() {
        let cache = VerifiedCache::new();
        cache.write(&cache.nar, "false");
        let suspects = cache.suspects().await;
        let late = cache.narinfo(2);
        let report = cache.examine_again(suspects).await;
        assert_eq!(report.damage.len(), 3, "{report:?}");
        assert!(report.damage.iter().all(|damage| damage.repaired));
        assert!(!cache.has(&late) && !cache.has(&cache.nar));
    }

    #[tokio::test]
    async fn objects_replaced_between_examination_and_quarantine_are_kept() {
        let cache = VerifiedCache::new();
        cache.write(&cache.nar, "false");
        let subject = cache.suspects().await.remove(0);
        let findings = cache.examine(&subject).await.unwrap();
        let narinfo = cache.narinfo(1);
        cache.write(&cache.nar, "right");
        let mut report = VerifyReport::default();
        assert!(!cache.verifier.report_findings(findings, true, &mut report).await);
        assert_eq!(report.damage, []);
        assert!(cache.has(&narinfo) && cache.has(&cache.nar));
    }

    #[tokio::test]
    async fn after_a_failed_quarantine_nothing_more_is_quarantined() {
        let cache = VerifiedCache::new();
        let torn = format!("debuginfo/{}.debug", "b".repeat(40));
        std::fs::create_dir(cache.path().join("debuginfo")).unwrap();
        cache.write(&torn, "{");
        cache.write(&cache.nar, "false");
        let mut findings = Findings::default();
        for subject in cache.suspects().await.into_iter().rev() {
            let found = cache.examine(&subject).await;
            findings.suspects.extend(found.unwrap().suspects);
        }
        // A file in place of the quarantine's directory makes the first move fail.
        let quarantine = cache.path().join(".nix-stored/quarantine");
        std::fs::create_dir(&quarantine).unwrap();
        std::fs::write(quarantine.join("debuginfo"), "").unwrap();
        let mut report = VerifyReport::default();
        assert!(cache.verifier.report_findings(findings, true, &mut report).await);
        assert!(report.not_quarantined.is_some());
        assert_eq!(report.damage.len(), 3);
        assert!(report.damage.iter().all(|damage| !damage.repaired));
        assert!(cache.has(&torn) && cache.has(&cache.nar));
    }
}
