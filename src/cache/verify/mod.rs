//! Verifies all objects of a cache.
//!
//! `survey` lists the objects. Two threads of the lowest priority then `examine` them, each NAR
//! once with all narinfos that name it. Uploads and collections continue meanwhile, so each suspect
//! is examined once more, alone, and only the second result counts: for the `report`, and for the
//! quarantine.

mod examine;
mod report;
mod survey;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use report::{Checked, Damage, DamageKind, Note, NoteKind, Report};

use super::{Cache, Progress};
use crate::config::Verify;
use crate::nix::CachePath;
use crate::nix::cache_path::NarName;
use crate::nix::store_path::ParseStorePathError;
use crate::store::{StoreError, background};
use examine::{Findings, Subject};

/// The number of threads that read and hash. More would delay other work.
const EXAMINERS: usize = 2;

/// The interval of progress reports.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// How often a subject that keeps changing is examined again.
const LOOKS: usize = 5;

/// The options of a verification.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether NARs are unpacked.
    pub depth: Verify,
    /// Whether damaged objects are quarantined.
    pub repair: bool,
}

/// A failed verification.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
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

impl Cache {
    /// Verifies all objects.
    pub async fn verify(
        self: Arc<Self>,
        options: Options,
        mut progress: impl FnMut(Progress),
    ) -> Result<Report, VerifyError> {
        let _lock = match options.repair {
            true => Some(self.lock_collection().await?.ok_or(VerifyError::Busy)?),
            false => None,
        };
        let mut survey = self.survey(|count| progress(Progress::Found(count))).await?;
        if let Some(error) = survey.take_other_store_dir() {
            return Err(VerifyError::StoreDir(error));
        }
        let mut report = Report { checked: survey.checked, ..Report::default() };
        report.damage.extend(survey.take_unreadable());
        for (path, etag) in survey.take_obstacles() {
            self.report_obstacle(path, &etag, options.repair, &mut report).await;
        }
        let of = survey.bytes;
        let (subjects, notes) = survey.finish(&self.info.store_dir);
        report.notes = notes;
        let read = Arc::new(AtomicU64::new(0));
        let told = |done| progress(Progress::Done { done, of });
        let suspicious = self.first_look(subjects, options, &read, told, &mut report.notes).await?;
        report.checked.bytes = read.load(Ordering::Relaxed);
        if suspicious.is_empty() {
            return Ok(report);
        }
        let settled = self.in_background(move |cache| async move {
            cache.second_look(suspicious, options, report).await
        });
        Ok(settled.await??)
    }

    /// Reports names of objects that are not files, and quarantines them if requested.
    async fn report_obstacle(
        &self,
        path: CachePath,
        etag: &Bytes,
        repair: bool,
        report: &mut Report,
    ) {
        let mut damage = Damage::no_file(path);
        if repair && report.not_put_aside.is_none() {
            match self.store.quarantine(&damage.object, etag).await {
                Ok(moved) => damage.repaired = moved,
                Err(error) => report.not_put_aside = Some(error),
            }
        }
        if damage.repaired {
            self.agent.has_put_aside(&damage.object, None);
        }
        report.damage.push(damage);
    }

    /// Runs `work` on a thread of its own, where it may wait for the disk and hash.
    async fn in_background<T, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) -> Result<T, VerifyError>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let (done, result) = oneshot::channel();
        let (cache, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
        background::spawn("verify", move || {
            // The receiver may have been dropped.
            let _ = done.send(runtime.block_on(work(cache)));
        })
        .map_err(VerifyError::Thread)?;
        result.await.map_err(|_| VerifyError::Thread(io::Error::other("the thread panicked")))
    }

    /// Examines all subjects, and returns the suspects.
    async fn first_look(
        self: &Arc<Self>,
        subjects: Vec<Subject>,
        options: Options,
        read: &Arc<AtomicU64>,
        mut progress: impl FnMut(u64),
        notes: &mut Vec<Note>,
    ) -> Result<Vec<Subject>, VerifyError> {
        let (sender, mut found) = mpsc::channel(EXAMINERS);
        let (subjects, next) = (Arc::new(subjects), Arc::new(AtomicUsize::new(0)));
        for _ in 0..EXAMINERS {
            let (cache, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
            let (subjects, next) = (Arc::clone(&subjects), Arc::clone(&next));
            let (sender, read) = (sender.clone(), Arc::clone(read));
            background::spawn("verify", move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(subject) = subjects.get(index) else {
                        return;
                    };
                    let examined = cache.examine(subject, options.depth, &read);
                    let examined = runtime.block_on(examined);
                    if sender.blocking_send((index, examined)).is_err() {
                        return;
                    }
                }
            })
            .map_err(VerifyError::Thread)?;
        }
        drop(sender);

        let mut suspicious = BTreeSet::new();
        let (mut examined, mut failed) = (0, None);
        let mut tick = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! {
                found = found.recv() => match found {
                    None => break,
                    Some((index, Ok(Findings { suspects, notes: more }))) => {
                        examined += 1;
                        if suspects.is_empty() {
                            notes.extend(more);
                        } else {
                            suspicious.insert(index);
                        }
                    }
                    Some((_, Err(error))) => {
                        // No new examination starts, and running ones end before this function
                        // returns.
                        next.store(subjects.len(), Ordering::Relaxed);
                        failed = Some(error);
                    }
                },
                _ = tick.tick() => progress(read.load(Ordering::Relaxed)),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        if examined < subjects.len() {
            return Err(VerifyError::Thread(io::Error::other("the thread panicked")));
        }
        Ok(suspicious.into_iter().map(|index| subjects[index].clone()).collect())
    }

    /// Examines the suspects once more, and quarantines the damaged ones.
    async fn second_look(
        &self,
        suspicious: Vec<Subject>,
        options: Options,
        mut report: Report,
    ) -> Result<Report, StoreError> {
        for subject in suspicious {
            self.settle(&subject, options, &mut report).await?;
        }
        let gone = report.damage.iter().filter_map(|damage| match damage.object {
            CachePath::Nar(name) if damage.repaired => Some(name),
            _ => None,
        });
        let gone: BTreeSet<NarName> = gone.collect();
        if gone.is_empty() {
            return Ok(report);
        }
        // A narinfo that was uploaded since the beginning may name one of them.
        let mut survey = self.survey(|_| {}).await?;
        for name in gone {
            let narinfos = survey.that_name(&name);
            if !narinfos.is_empty() {
                self.settle(&Subject::Nar(name, narinfos), options, &mut report).await?;
            }
        }
        Ok(report)
    }

    /// Examines `subject` until it is not changed meanwhile, and reports the result.
    async fn settle(
        &self,
        subject: &Subject,
        options: Options,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        for _ in 0..LOOKS {
            let findings = self.examine(subject, options.depth, &AtomicU64::new(0)).await?;
            if self.take_note(findings, options.repair, report).await {
                return Ok(());
            }
        }
        let findings = self.examine(subject, options.depth, &AtomicU64::new(0)).await?;
        self.take_note(findings, false, report).await;
        Ok(())
    }

    /// Reports the findings, and quarantines the objects if requested. Returns false without
    /// reporting the rest if an object has changed since its examination.
    async fn take_note(&self, findings: Findings, repair: bool, report: &mut Report) -> bool {
        let mut stays = Vec::new();
        // Narinfos come before their NAR: a visible narinfo must have it.
        for mut suspect in findings.suspects {
            let moved = match &suspect.etag {
                Some(etag) if repair && report.not_put_aside.is_none() => {
                    self.store.quarantine(&suspect.damage.object, etag).await
                }
                _ => {
                    stays.push(suspect.damage);
                    continue;
                }
            };
            if let CachePath::NarInfo(hash) = suspect.damage.object {
                self.hot.forget(&hash);
            }
            match moved {
                Ok(true) => {
                    let damage = &suspect.damage;
                    self.agent.has_put_aside(&damage.object, damage.store_path.as_deref());
                    suspect.damage.repaired = true;
                    report.damage.push(suspect.damage);
                }
                Ok(false) => return false,
                Err(error) => {
                    report.not_put_aside = Some(error);
                    stays.push(suspect.damage);
                }
            }
        }
        report.damage.extend(stays);
        report.notes.extend(findings.notes);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Admission;
    use crate::nix::{CacheInfo, Sha256Hash, StorePathHash};
    use crate::store::FsStore;

    const REPAIR: Options = Options { depth: Verify::File, repair: true };

    /// A cache with this file as a NAR and a narinfo of it.
    struct Site {
        dir: tempfile::TempDir,
        cache: Arc<Cache>,
        nar: String,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(FsStore::open(dir.path(), 0).unwrap().into());
            let cache = Arc::new(Cache::new(store, CacheInfo::default(), Admission::default()));
            let nar = format!("nar/{}.nar", Sha256Hash::of(b"right").to_nix32());
            let site = Self { dir, cache, nar };
            site.write(&site.nar, "right");
            site.narinfo(1);
            site
        }

        fn path(&self) -> &Path {
            self.dir.path()
        }

        /// Replaces a file as an upload does.
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

        /// What the first look finds.
        async fn first_look(&self) -> Vec<Subject> {
            let survey = self.cache.survey(|_| {}).await.unwrap();
            let (subjects, _) = survey.finish(&self.cache.info.store_dir);
            let (read, mut notes) = (Arc::default(), Vec::new());
            let looked = self.cache.first_look(subjects, REPAIR, &read, |_| {}, &mut notes);
            looked.await.unwrap()
        }

        async fn second_look(&self, suspicious: Vec<Subject>) -> Report {
            self.cache.second_look(suspicious, REPAIR, Report::default()).await.unwrap()
        }

        fn has(&self, key: &str) -> bool {
            self.path().join(key).exists()
        }
    }

    #[tokio::test]
    async fn what_was_mended_since_the_first_look_is_no_damage() {
        let site = Site::new();
        assert!(site.first_look().await.is_empty());
        for harm in ["false", ""] {
            site.write(&site.nar, harm);
            let suspicious = site.first_look().await;
            assert_eq!(suspicious.len(), 1);
            site.write(&site.nar, "right");
            assert_eq!(site.second_look(suspicious).await.damage, []);
        }
        std::fs::remove_file(site.path().join(&site.nar)).unwrap();
        let suspicious = site.first_look().await;
        assert_eq!(suspicious.len(), 1);
        site.write(&site.nar, "right");
        assert_eq!(site.second_look(suspicious).await.damage, []);
        // It was collected.
        let narinfo = site.narinfo(1);
        std::fs::remove_file(site.path().join(&site.nar)).unwrap();
        let suspicious = site.first_look().await;
        std::fs::remove_file(site.path().join(narinfo)).unwrap();
        assert_eq!(site.second_look(suspicious).await.damage, []);
    }

    #[tokio::test]
    async fn what_came_since_the_first_look_does_not_stay_without_its_nar() {
        let site = Site::new();
        site.write(&site.nar, "false");
        let suspicious = site.first_look().await;
        let late = site.narinfo(2);
        let report = site.second_look(suspicious).await;
        assert_eq!(report.damage.len(), 3, "{report:?}");
        assert!(report.damage.iter().all(|damage| damage.repaired));
        assert!(!site.has(&late) && !site.has(&site.nar));
    }

    #[tokio::test]
    async fn what_is_replaced_between_the_look_and_the_move_stays() {
        let site = Site::new();
        site.write(&site.nar, "false");
        let subject = site.first_look().await.remove(0);
        let looked = site.cache.examine(&subject, Verify::File, &AtomicU64::new(0)).await.unwrap();
        let narinfo = site.narinfo(1);
        site.write(&site.nar, "right");
        let mut report = Report::default();
        assert!(!site.cache.take_note(looked, true, &mut report).await);
        assert_eq!(report.damage, []);
        assert!(site.has(&narinfo) && site.has(&site.nar));
    }

    #[tokio::test]
    async fn after_something_could_not_be_put_aside_nothing_more_is() {
        let site = Site::new();
        let torn = format!("debuginfo/{}.debug", "b".repeat(40));
        std::fs::create_dir(site.path().join("debuginfo")).unwrap();
        site.write(&torn, "{");
        site.write(&site.nar, "false");
        let mut findings = Findings::default();
        for subject in site.first_look().await.into_iter().rev() {
            let found = site.cache.examine(&subject, Verify::File, &AtomicU64::new(0)).await;
            findings.suspects.extend(found.unwrap().suspects);
        }
        // Where the first one would go there is no folder, and none can be made.
        let aside = site.path().join(".nix-stored/quarantine");
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join("debuginfo"), "").unwrap();
        let mut report = Report::default();
        assert!(site.cache.take_note(findings, true, &mut report).await);
        assert!(report.not_put_aside.is_some());
        assert_eq!(report.damage.len(), 3);
        assert!(report.damage.iter().all(|damage| !damage.repaired));
        assert!(site.has(&torn) && site.has(&site.nar));
    }
}
