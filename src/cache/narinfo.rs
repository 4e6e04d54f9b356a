//! Narinfos: the narinfo makes a store path visible, so it is accepted only after verification
//! against its NAR.

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::nar_facts::{NarContents, NarFacts, check_against_nar};
use super::receipt::UploadReceipt;
use super::state::Cache;
use crate::ingest::{BodyError, PutError, collect, decode};
use crate::nix::cache_path::NarName;
use crate::nix::{
    CachePath, Compression, LenientNarInfo, NarInfo, Signature, StorePath, StorePathHash, narinfo,
};
use crate::store::{Content, Object, StoreError, Stored};

/// The result of [`Cache::adopt_narinfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Adopted {
    /// The narinfo is new in this cache.
    New,
    /// This cache has a narinfo with the same contents.
    Known,
    /// This cache has a narinfo with other contents, and keeps it.
    Differs,
}

/// An uploaded narinfo that has been parsed, and whose signatures have been checked.
pub(crate) struct NarInfoUpload {
    info: NarInfo,
    fingerprint: String,
    /// The trusted keys that have signed it.
    signed_by: Option<String>,
    /// The length of the uploaded text, in bytes.
    size: u64,
    /// Whether it agrees with its NAR, and its references may be missing.
    is_admitted: bool,
    /// Held while a large narinfo is in memory.
    _memory: Option<OwnedSemaphorePermit>,
}

/// The result of [`Cache::store_narinfo`].
pub(crate) enum StoreNarInfo {
    /// It was stored.
    Done(UploadReceipt),
    /// Its NAR is not in this cache.
    NarMissing(NarName),
    /// These references are not in this cache, and `NIX_STORED_REQUIRE_REFERENCES` is set.
    ReferencesMissing(Vec<StorePath>),
}

/// The result of merging an uploaded narinfo with the stored one.
enum Merge {
    /// The stored narinfo is true, and has the signatures.
    Done,
    /// The stored narinfo is not true, and must be replaced.
    Replace,
    /// Whether the stored narinfo is true depends on this NAR, which must be read without the lock of
    /// the narinfo.
    ReadFirst(NarName),
    /// Another process has changed the stored narinfo meanwhile.
    Changed,
}

/// The NAR that was read for [`Merge::ReadFirst`].
#[derive(Clone, Copy)]
enum NarReading {
    NotRead,
    Intact(NarName, NarFacts),
    /// The NAR is absent or damaged.
    Unusable(NarName),
}

/// A stored narinfo before its change.
struct Before {
    /// `None` if it is absent or does not parse. An upload replaces a narinfo that does not parse.
    narinfo: Option<NarInfo>,
    /// The entity tag of the stored object, whether or not it parses.
    etag: Option<Bytes>,
}

/// The number of times that another process changed the narinfo during a change.
#[derive(Default)]
struct Changes(u32);

impl Changes {
    /// Allows another attempt, up to 20.
    fn once_more(&mut self, path: &CachePath) -> Result<(), StoreError> {
        self.0 += 1;
        match self.0 {
            ..20 => Ok(()),
            _ => Err(StoreError::too_many_changes(&path.key())),
        }
    }
}

impl Cache {
    /// Stores an uploaded narinfo if it matches its name and a stored NAR.
    pub(super) async fn put_narinfo(
        &self,
        hash: StorePathHash,
        encoding: Compression,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
    ) -> Result<UploadReceipt, PutError> {
        let mut upload = self.receive_narinfo(hash, encoding, declared, body).await?;
        match self.store_narinfo(&mut upload).await? {
            StoreNarInfo::Done(receipt) => Ok(receipt),
            StoreNarInfo::NarMissing(name) => Err(PutError::NarMissing(CachePath::Nar(name).key())),
            StoreNarInfo::ReferencesMissing(mut paths) => {
                Err(PutError::Reference(paths.swap_remove(0)))
            }
        }
    }

    /// Receives a narinfo, and checks its name and its signatures.
    pub(crate) async fn receive_narinfo(
        &self,
        hash: StorePathHash,
        encoding: Compression,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
    ) -> Result<NarInfoUpload, PutError> {
        let path = CachePath::NarInfo(hash);
        let feed = self.feed(declared, body).await?;
        let text = collect(&self.store, &path, declared, narinfo::MAX_SIZE, feed).await?;
        let mut memory = self.large_narinfos.reserve(text.len()).await;
        let mut text = text.into_bytes(&path).await?;
        if encoding != Compression::None {
            text = decode(&self.decoders, encoding, text).await?;
            // Returned first: whoever waits for more of a limit must hold none of it.
            drop(memory.take());
            memory = self.large_narinfos.reserve(text.len() as u64).await;
        }
        let size = text.len() as u64;
        let (signatures, store_dir) = (self.signatures.clone(), self.info.store_dir.clone());
        let parse = move || {
            let mut info = NarInfo::parse(&text, &store_dir)?;
            // An uploaded path is no longer mirrored.
            info.set_upstream(None);
            let actual = info.store_path.hash();
            if actual != hash {
                return Err(PutError::HashPart { expected: hash, actual });
            }
            let signed_by = signatures.check_upload(&info)?;
            signatures.select(&mut info, &[]);
            Ok((info.fingerprint(), info, signed_by))
        };
        let (fingerprint, info, signed_by) =
            self.large_narinfos.parse(size as usize, parse).await?;
        Ok(NarInfoUpload {
            info,
            fingerprint,
            signed_by,
            size,
            is_admitted: false,
            _memory: memory,
        })
    }

    /// Stores an uploaded narinfo if it agrees with its NAR, which must be in this cache. Its
    /// references must be in this cache, too, if `NIX_STORED_REQUIRE_REFERENCES` is set; a caller that
    /// finds the missing ones elsewhere calls this again.
    pub(crate) async fn store_narinfo(
        &self,
        upload: &mut NarInfoUpload,
    ) -> Result<StoreNarInfo, PutError> {
        // Not a copy of the narinfo, which can have 16 MiB.
        let NarInfoUpload { info, fingerprint, signed_by, size, is_admitted, .. } = upload;
        let hash = info.store_path.hash();
        let path = CachePath::NarInfo(hash);
        let done = |stored, info: &NarInfo| {
            Ok(StoreNarInfo::Done(self.receipt(stored, *size, info, signed_by.clone())))
        };
        let mut reading = NarReading::NotRead;
        let mut changes = Changes::default();
        loop {
            // Without the lock, two uploads of the same narinfo would each merge with the narinfo
            // before both. The holder of the lock waits for the store only, and for no decoder or
            // upstream.
            let lock = self.narinfo_locks.take(&hash).await;
            let Before { narinfo: ours, etag } = self.read_before(&path).await?;
            let stored = if ours.is_some() { Stored::Replaced } else { Stored::Created };
            match ours.map(|ours| (ours.fingerprint(), ours)) {
                Some((before, ours)) if before == *fingerprint => {
                    match self.merge(&path, ours, etag.as_ref(), info, reading).await? {
                        Merge::Done => return done(stored, info),
                        Merge::Replace => {}
                        Merge::ReadFirst(name) => {
                            drop(lock);
                            reading = self.read_nar(name).await?;
                            continue;
                        }
                        Merge::Changed => {
                            changes.once_more(&path)?;
                            continue;
                        }
                    }
                }
                Some((before, _)) if *is_admitted => warn!(
                    store_path = %info.store_path,
                    %before,
                    now = %fingerprint,
                    "replaced a narinfo with different contents: the build is not reproducible, \
                     or one of the two uploads is wrong"
                ),
                _ => {}
            }
            if *is_admitted {
                if self.publish(info, etag.as_ref()).await? {
                    return done(stored, info);
                }
                changes.once_more(&path)?;
                continue;
            }
            drop(lock);
            let name = nar_name(info)?;
            let Some(facts) = self.nar_facts(name).await? else {
                return Ok(StoreNarInfo::NarMissing(name));
            };
            admit(info, name, facts)?;
            *is_admitted = true;
            let mut missing = Vec::new();
            let is_required = self.admission.require_references;
            self.touch_references(info, |absent| {
                if is_required {
                    missing.push(absent.clone());
                }
            })
            .await?;
            if !missing.is_empty() {
                return Ok(StoreNarInfo::ReferencesMissing(missing));
            }
        }
    }

    /// Adds the signatures of `theirs` to `ours`, the stored narinfo with the same fingerprint and the
    /// entity tag `etag`.
    ///
    /// Everything else stays as it was: Nix signs again from its memory of up to 30 days ago, which
    /// may name another NAR (Nix's `src/libstore/nar-info-disk-cache.cc`).
    async fn merge(
        &self,
        path: &CachePath,
        mut ours: NarInfo,
        etag: Option<&Bytes>,
        theirs: &NarInfo,
        reading: NarReading,
    ) -> Result<Merge, PutError> {
        match self.is_still_true(path, &ours, theirs, reading).await? {
            Merge::Done => {}
            other => return Ok(other),
        }
        let before = ours.clone();
        // An uploaded path is no longer mirrored.
        ours.set_upstream(theirs.upstream());
        self.signatures.select(&mut ours, &theirs.signatures);
        if ours != before {
            // The list of a running collection may miss a file that is replaced at that moment. Then
            // only recent uses keep its references.
            self.touch_references(&ours, |_| {}).await?;
            if !self.publish(&ours, etag).await? {
                return Ok(Merge::Changed);
            }
        }
        Ok(Merge::Done)
    }

    /// Reads a NAR, to compare the stored narinfo with it.
    async fn read_nar(&self, name: NarName) -> Result<NarReading, PutError> {
        match self.nar_facts(name).await {
            Ok(Some(facts)) => Ok(NarReading::Intact(name, facts)),
            Ok(None) | Err(PutError::NarDamaged(_) | PutError::Unpack(_)) => {
                Ok(NarReading::Unusable(name))
            }
            Err(error) => Err(error),
        }
    }

    fn receipt(
        &self,
        stored: Stored,
        size: u64,
        info: &NarInfo,
        signed_by: Option<String>,
    ) -> UploadReceipt {
        let unchecked = self.admission.trusted_public_keys.is_empty();
        let keys = info.signatures.iter().map(Signature::key_name).collect::<Vec<_>>();
        UploadReceipt {
            store_path: Some(self.info.store_dir.join(&info.store_path)),
            file_hash: info.file_hash.or_else(|| Some(info.nar_name()?.file_hash)),
            nar_hash: Some(info.nar_hash),
            signed_by,
            unchecked_keys: (unchecked && !keys.is_empty()).then(|| keys.join(" ")),
            ..UploadReceipt::plain(stored, size)
        }
    }

    /// Stores the narinfo of a mirrored path, with a line `Upstream:`. Its NAR must be in this cache;
    /// its references are fetched when they are requested.
    #[cfg(feature = "upstream")]
    pub(crate) async fn store_mirrored_narinfo(
        &self,
        mut info: NarInfo,
        upstream: &str,
    ) -> Result<(), PutError> {
        let hash = info.store_path.hash();
        self.admit_stored(&mut info).await?;
        let _lock = self.narinfo_locks.take(&hash).await;
        // An upload in the meantime takes precedence.
        let before = self.read_before(&CachePath::NarInfo(hash)).await?;
        if before.narinfo.is_some() {
            return Ok(());
        }
        info.set_upstream(Some(upstream));
        self.signatures.select(&mut info, &[]);
        // False if another daemon has stored it meanwhile, which is as good.
        self.publish(&info, before.etag.as_ref()).await.map(drop)
    }

    /// Stores the narinfo of another cache, with its line `Upstream:`.
    pub(crate) async fn adopt_narinfo(&self, mut info: NarInfo) -> Result<Adopted, PutError> {
        self.signatures.check_stored(&info)?;
        let hash = info.store_path.hash();
        let path = CachePath::NarInfo(hash);
        let mut reading = NarReading::NotRead;
        let mut is_admitted = false;
        let mut changes = Changes::default();
        loop {
            let lock = self.narinfo_locks.take(&hash).await;
            let Before { narinfo: ours, etag } = self.read_before(&path).await?;
            match ours {
                Some(ours) if ours.fingerprint() != info.fingerprint() => {
                    return Ok(Adopted::Differs);
                }
                Some(ours) => {
                    // A path that was uploaded to either of the two caches was uploaded.
                    if info.upstream().is_some() {
                        info.set_upstream(ours.upstream());
                    }
                    match self.merge(&path, ours, etag.as_ref(), &info, reading).await? {
                        Merge::Done => return Ok(Adopted::Known),
                        Merge::Changed => {
                            changes.once_more(&path)?;
                            continue;
                        }
                        Merge::Replace => {}
                        Merge::ReadFirst(name) => {
                            drop(lock);
                            reading = self.read_nar(name).await?;
                            continue;
                        }
                    }
                }
                None => {}
            }
            if is_admitted {
                self.signatures.select(&mut info, &[]);
                if self.publish(&info, etag.as_ref()).await? {
                    return Ok(Adopted::New);
                }
                changes.once_more(&path)?;
                continue;
            }
            drop(lock);
            self.admit_stored(&mut info).await?;
            is_admitted = true;
        }
    }

    /// Stores a narinfo in place of the one with the entity tag `before`, or of an absent one.
    /// Returns false if there is another one by now.
    async fn publish(&self, info: &NarInfo, before: Option<&Bytes>) -> Result<bool, PutError> {
        let path = CachePath::NarInfo(info.store_path.hash());
        Ok(self.replace_whole(&path, info.to_string().into(), before).await?)
    }

    /// Reads the narinfo at `path` before a change.
    async fn read_before(&self, path: &CachePath) -> Result<Before, StoreError> {
        let Some(object) = self.store.get(path).await? else {
            return Ok(Before { narinfo: None, etag: None });
        };
        let etag = Some(object.metadata.etag);
        let Content::Bytes(text) = object.content else {
            return Err(StoreError::narinfo_too_large(&path.key(), object.metadata.size));
        };
        Ok(Before { narinfo: self.parse_stored(text).await, etag })
    }

    /// Parses a stored narinfo. Returns `None` if it does not parse.
    pub(crate) async fn parse_stored(&self, text: Bytes) -> Option<NarInfo> {
        let (store_dir, length) = (self.info.store_dir.clone(), text.len());
        let parse = move || NarInfo::parse(&text, &store_dir).ok();
        self.large_narinfos.parse(length, parse).await
    }

    /// Returns the names in the narinfo at `path`, parsed as leniently as the most lenient Nix, or
    /// `None` if it is absent.
    pub(crate) async fn read_named(
        &self,
        path: &CachePath,
    ) -> Result<Option<LenientNarInfo>, StoreError> {
        let text = self.read_narinfo_text(path).await?;
        Ok(text.map(|text| LenientNarInfo::read(&text)))
    }

    /// Returns the text of the narinfo at `path`, or `None` if it is absent.
    pub(crate) async fn read_narinfo_text(
        &self,
        path: &CachePath,
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(object) = self.store.get(path).await? else {
            return Ok(None);
        };
        match object.content {
            Content::Bytes(text) => Ok(Some(text)),
            _ => Err(StoreError::narinfo_too_large(&path.key(), object.metadata.size)),
        }
    }

    /// Returns [`Merge::Done`] if the stored narinfo `ours` agrees with its NAR, and both are there. Then
    /// it also records their use, because the client expects the path to be kept like a new upload.
    ///
    /// If the facts of the NAR are unknown, the NAR is read only if `theirs` names another NAR than
    /// `ours`: signing a closure uploads all its narinfos again, and a NAR can have gigabytes.
    async fn is_still_true(
        &self,
        path: &CachePath,
        ours: &NarInfo,
        theirs: &NarInfo,
        reading: NarReading,
    ) -> Result<Merge, PutError> {
        let Some(name) = ours.nar_name() else {
            return Ok(Merge::Replace);
        };
        let nar = CachePath::Nar(name);
        let Some(metadata) = self.store.head(&nar).await? else {
            return Ok(Merge::Replace);
        };
        if !self.touch_if_present(path).await? || !self.touch_since(&nar, metadata.used).await? {
            return Ok(Merge::Replace);
        }
        let same_nar = (&ours.url, &ours.compression, ours.file_hash, ours.file_size)
            == (&theirs.url, &theirs.compression, theirs.file_hash, theirs.file_size);
        let facts = match self.known_facts(name, &metadata) {
            Some(facts) => facts,
            _ if same_nar => NarFacts { file_size: metadata.size, contents: NarContents::NotRead },
            _ => match reading {
                NarReading::Intact(known, facts) if known == name => facts,
                NarReading::Unusable(known) if known == name => return Ok(Merge::Replace),
                _ => return Ok(Merge::ReadFirst(name)),
            },
        };
        let is_true = check_against_nar(ours, name, facts).is_ok();
        Ok(if is_true { Merge::Done } else { Merge::Replace })
    }

    /// Admits a narinfo from another cache: its NAR must be in this cache; its references need not be.
    async fn admit_stored(&self, info: &mut NarInfo) -> Result<(), PutError> {
        let name = nar_name(info)?;
        let facts = self.nar_facts(name).await?;
        let facts = facts.ok_or_else(|| PutError::NarMissing(info.url.clone()))?;
        admit(info, name, facts)?;
        self.touch_references(info, |_| {}).await?;
        Ok(())
    }

    /// Records the use of all references, so that a running collection keeps them. `on_absent` gets
    /// the absent ones.
    async fn touch_references(
        &self,
        info: &NarInfo,
        mut on_absent: impl FnMut(&StorePath),
    ) -> Result<(), StoreError> {
        for reference in info.references.iter().filter(|path| **path != info.store_path) {
            // Lookups in memory never yield, and a narinfo can have thousands of references.
            tokio::task::consume_budget().await;
            if !self.touch_if_present(&CachePath::NarInfo(reference.hash())).await? {
                on_absent(reference);
            }
        }
        Ok(())
    }
}

/// The name of a narinfo's NAR, which must be one of this cache.
fn nar_name(info: &NarInfo) -> Result<NarName, PutError> {
    info.nar_name().ok_or_else(|| PutError::NarElsewhere(info.url.clone()))
}

/// Compares a narinfo with the facts about its NAR, and adds the file's hash and size, which Nix up
/// to 2.34 needs to sign it.
fn admit(info: &mut NarInfo, name: NarName, facts: NarFacts) -> Result<(), PutError> {
    info.file_hash.get_or_insert(name.file_hash);
    info.file_size.get_or_insert(facts.file_size);
    check_against_nar(info, name, facts)
}

/// Whether clients can fetch the NAR of a stored narinfo: its `URL` has the name of a NAR in this cache,
/// or is on another server. Otherwise the path counts as absent: another program has named the NAR in
/// a way that is not served, or there is no `URL`.
pub(super) fn has_servable_nar(narinfo: &Object) -> bool {
    let Content::Bytes(text) = &narinfo.content else {
        return true;
    };
    let mut lines = text.split(|byte| *byte == b'\n').rev();
    let url = lines.find_map(|line| line.strip_prefix(b"URL: "));
    let Some(url) = url.and_then(|url| std::str::from_utf8(url).ok()) else {
        return !LenientNarInfo::read(text).nars.is_empty();
    };
    let (path, query) =
        url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    matches!(CachePath::from_request(path, query), Ok(CachePath::Nar(_)))
        || url.contains("://")
        || !LenientNarInfo::read(text).nars.is_empty()
}
