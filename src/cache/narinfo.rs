//! Narinfos: the narinfo makes a store path visible, so it is accepted only after verification
//! against its NAR.

use bytes::Bytes;
use futures_util::Stream;
use tracing::warn;

use super::feed::Feed;
use super::ingest;
use super::nar::{NarContents, NarFacts, check_compression};
use super::{BodyError, Cache, PutError, UploadReceipt};
use crate::nix::cache_path::NarName;
use crate::nix::{
    CachePath, Compression, LenientNarInfo, NarInfo, Signature, StorePath, StorePathHash, narinfo,
};
use crate::store::{Content, Object, StoreError, Stored};

/// The result of storing a narinfo of another cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adopted {
    /// It is new here.
    New,
    /// It was here, with the same contents.
    Known,
    /// There is a narinfo with other contents, which is kept.
    Differs,
}

/// An uploaded narinfo.
struct UploadedNarInfo {
    info: NarInfo,
    /// Its fingerprint.
    fingerprint: String,
    /// The trusted keys that have signed it.
    signed_by: Option<String>,
}

/// The result of merging an uploaded narinfo with the stored one.
enum Merge {
    /// Ours is true, and has the signatures.
    Done,
    /// Ours is not true, and is to be replaced.
    Replace,
    /// Only this NAR can tell. It is to be read, without the lock of the narinfo.
    ReadFirst(NarName),
    /// Another process has changed ours meanwhile.
    Changed,
}

/// A stored narinfo before its change.
struct Before {
    /// None also if it does not parse. Such a one is as good as none: an upload of a better one shall
    /// replace it.
    narinfo: Option<NarInfo>,
    /// Of what is there.
    etag: Option<Bytes>,
}

/// Counts how often a change is begun anew because another process has changed the same narinfo.
#[derive(Default)]
struct Changes(u32);

impl Changes {
    /// Begins once more, if it has not been begun too often.
    fn once_more(&mut self, path: &CachePath) -> Result<(), StoreError> {
        self.0 += 1;
        match self.0 {
            ..20 => Ok(()),
            _ => Err(StoreError::changes_all_the_time(&path.key())),
        }
    }
}

impl Cache {
    /// Stores a narinfo if it matches its name and a stored NAR.
    pub(super) async fn put_narinfo(
        &self,
        hash: StorePathHash,
        encoding: Compression,
        declared: Option<u64>,
        feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<UploadReceipt, PutError> {
        let path = CachePath::NarInfo(hash);
        let limit = narinfo::MAX_SIZE;
        let text = ingest::collect(&self.store, &path, declared, limit, feed).await?;
        // Held while it is in memory.
        let mut _room = self.large_narinfos.reserve(text.len()).await;
        let mut text = text.into_bytes(&path).await?;
        if encoding != Compression::None {
            text = ingest::decode(&self.decoders, encoding, text).await?;
            _room = None;
            _room = self.large_narinfos.reserve(text.len() as u64).await;
        }
        let size = text.len() as u64;
        let UploadedNarInfo { mut info, fingerprint, signed_by } =
            self.parse_upload(hash, text).await?;

        let mut read = None;
        let mut is_admitted = false;
        let mut changes = Changes::default();
        loop {
            // Without the lock, two uploads of the same narinfo would each merge with the narinfo
            // before both. The holder of the lock waits for the store only, and for no decoder or
            // upstream.
            let lock = self.turns.take(&hash).await;
            let Before { narinfo: ours, etag } = self.read_before(&path).await?;
            let stored = if ours.is_some() { Stored::Replaced } else { Stored::Created };
            match ours.map(|ours| (ours.fingerprint(), ours)) {
                Some((before, ours)) if before == fingerprint => {
                    match self.merge(&path, ours, etag.as_ref(), &info, read).await? {
                        Merge::Done => return Ok(self.accepted(stored, size, &info, signed_by)),
                        Merge::Replace => {}
                        Merge::ReadFirst(name) => {
                            drop(lock);
                            read = Some((name, self.facts_if_right(name).await?));
                            continue;
                        }
                        Merge::Changed => {
                            changes.once_more(&path)?;
                            continue;
                        }
                    }
                }
                Some((before, _)) if is_admitted => warn!(
                    store_path = %info.store_path,
                    %before,
                    now = %fingerprint,
                    "replaced a narinfo with different contents: the build is not reproducible, \
                     or one of the two uploads is wrong"
                ),
                _ => {}
            }
            if is_admitted {
                if self.publish(&info, etag.as_ref()).await? {
                    return Ok(self.accepted(stored, size, &info, signed_by));
                }
                changes.once_more(&path)?;
                continue;
            }
            drop(lock);
            self.admit(&mut info, self.admission.require_references).await?;
            is_admitted = true;
        }
    }

    /// Parses an uploaded narinfo, and checks its name and its signatures.
    async fn parse_upload(
        &self,
        hash: StorePathHash,
        text: Bytes,
    ) -> Result<UploadedNarInfo, PutError> {
        let (cache, length) = (self.clone(), text.len());
        let parse = move || {
            let mut info = NarInfo::parse(&text, &cache.info.store_dir)?;
            // An uploaded path is no longer mirrored.
            info.set_upstream(None);
            let actual = info.store_path.hash();
            if actual != hash {
                return Err(PutError::HashPart { expected: hash, actual });
            }
            let signed_by = cache.check_signatures(&info)?;
            cache.select_signatures(&mut info, &[]);
            Ok(UploadedNarInfo { fingerprint: info.fingerprint(), info, signed_by })
        };
        self.large_narinfos.parse(length, parse).await
    }

    /// Takes over the signatures of `theirs`, a narinfo with the same fingerprint as `ours`, which has
    /// the entity tag `etag`. `read` is what has been read of a NAR for this.
    ///
    /// Everything else stays as it was: Nix signs again from its memory of up to 30 days ago, which
    /// may name another NAR (Nix's `src/libstore/nar-info-disk-cache.cc`).
    async fn merge(
        &self,
        path: &CachePath,
        mut ours: NarInfo,
        etag: Option<&Bytes>,
        theirs: &NarInfo,
        read: Option<(NarName, Option<NarFacts>)>,
    ) -> Result<Merge, PutError> {
        match self.is_still_true(path, &ours, theirs, read).await? {
            Merge::Done => {}
            other => return Ok(other),
        }
        let before = ours.clone();
        // Where the path was mirrored from, it is here from now on because it was uploaded here.
        ours.set_upstream(theirs.upstream());
        self.select_signatures(&mut ours, &theirs.signatures);
        if ours != before {
            // Listing a directory may miss the name whose file is replaced just then, and with it
            // why its references are kept.
            self.touch_references(&ours, false).await?;
            if !self.publish(&ours, etag).await? {
                return Ok(Merge::Changed);
            }
        }
        Ok(Merge::Done)
    }

    /// The facts about a NAR; none if it is absent or damaged.
    async fn facts_if_right(&self, name: NarName) -> Result<Option<NarFacts>, PutError> {
        match self.facts(name).await {
            Err(PutError::NarDamaged(_) | PutError::Unpack(_)) => Ok(None),
            facts => facts,
        }
    }

    fn accepted(
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

    /// Publishes the narinfo of a mirrored path, with a line `Upstream:`.
    #[cfg(feature = "upstream")]
    pub(super) async fn mirror_narinfo(
        &self,
        mut info: NarInfo,
        upstream: &str,
    ) -> Result<(), PutError> {
        let hash = info.store_path.hash();
        // Its references are fetched when they are requested.
        self.admit(&mut info, false).await?;
        let _lock = self.turns.take(&hash).await;
        // An upload in the meantime takes precedence.
        let before = self.read_before(&CachePath::NarInfo(hash)).await?;
        if before.narinfo.is_some() {
            return Ok(());
        }
        info.set_upstream(Some(upstream));
        self.select_signatures(&mut info, &[]);
        // If another daemon has stored it meanwhile, it is here.
        self.publish(&info, before.etag.as_ref()).await.map(drop)
    }

    /// Stores the narinfo of another cache, with its line `Upstream:`.
    pub(super) async fn adopt_narinfo(&self, mut info: NarInfo) -> Result<Adopted, PutError> {
        self.check_stored_signatures(&info)?;
        let hash = info.store_path.hash();
        let path = CachePath::NarInfo(hash);
        let mut read = None;
        let mut is_admitted = false;
        let mut changes = Changes::default();
        loop {
            let lock = self.turns.take(&hash).await;
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
                    match self.merge(&path, ours, etag.as_ref(), &info, read).await? {
                        Merge::Done => return Ok(Adopted::Known),
                        Merge::Changed => {
                            changes.once_more(&path)?;
                            continue;
                        }
                        Merge::Replace => {}
                        Merge::ReadFirst(name) => {
                            drop(lock);
                            read = Some((name, self.facts_if_right(name).await?));
                            continue;
                        }
                    }
                }
                None => {}
            }
            if is_admitted {
                self.select_signatures(&mut info, &[]);
                if self.publish(&info, etag.as_ref()).await? {
                    return Ok(Adopted::New);
                }
                changes.once_more(&path)?;
                continue;
            }
            drop(lock);
            self.admit(&mut info, false).await?;
            is_admitted = true;
        }
    }

    /// Stores a narinfo in place of the one with the entity tag `before`, or of an absent one.
    /// Returns false if there is another one by now.
    async fn publish(&self, info: &NarInfo, before: Option<&Bytes>) -> Result<bool, PutError> {
        let hash = info.store_path.hash();
        let text = info.to_string().into();
        let put = self.replace_whole(&CachePath::NarInfo(hash), text, before).await;
        // Even a failed change may have taken effect.
        self.hot.forget(&hash);
        Ok(put?)
    }

    /// The narinfo at `path` as it is before it is changed.
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

    /// A narinfo of the store, if it parses.
    pub(super) async fn parse_stored(&self, text: Bytes) -> Option<NarInfo> {
        let (store_dir, length) = (self.info.store_dir.clone(), text.len());
        let parse = move || NarInfo::parse(&text, &store_dir).ok();
        self.large_narinfos.parse(length, parse).await
    }

    /// Returns the names in the narinfo at `path`, parsed as leniently as the most lenient Nix, or
    /// `None` if it is absent.
    pub(super) async fn read_named(
        &self,
        path: &CachePath,
    ) -> Result<Option<LenientNarInfo>, StoreError> {
        let text = self.read_narinfo_text(path).await?;
        Ok(text.map(|text| LenientNarInfo::read(&text)))
    }

    /// The text of the narinfo at `path`; none if it is absent.
    pub(super) async fn read_narinfo_text(
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

    /// Whether a narinfo of ours and its NAR are here, and the one is true of the other
    /// ([`Merge::Done`]). If so they will not be collected: the client that uploads the path again may
    /// take them for new.
    ///
    /// A NAR that has been replaced by hand is read only where `theirs` disagrees with `ours`: Nix
    /// signs whole closures again, and each NAR can have gigabytes.
    async fn is_still_true(
        &self,
        path: &CachePath,
        ours: &NarInfo,
        theirs: &NarInfo,
        read: Option<(NarName, Option<NarFacts>)>,
    ) -> Result<Merge, PutError> {
        let Some(name) = ours.nar_name() else {
            return Ok(Merge::Replace);
        };
        let nar = CachePath::Nar(name);
        let Some(metadata) = self.store.head(&nar).await? else {
            return Ok(Merge::Replace);
        };
        if !self.touch_if_present(path).await? || !self.need(&nar, metadata.used).await? {
            return Ok(Merge::Replace);
        }
        let same_nar = (&ours.url, &ours.compression, ours.file_hash, ours.file_size)
            == (&theirs.url, &theirs.compression, theirs.file_hash, theirs.file_size);
        let facts = match self.known_facts(name, &metadata) {
            Some(facts) => facts,
            _ if same_nar => NarFacts { file_size: metadata.size, contents: NarContents::NotRead },
            _ => match read {
                Some((known, Some(facts))) if known == name => facts,
                Some((known, None)) if known == name => return Ok(Merge::Replace),
                _ => return Ok(Merge::ReadFirst(name)),
            },
        };
        let is_true = check_against_nar(ours, name, facts).is_ok();
        Ok(if is_true { Merge::Done } else { Merge::Replace })
    }

    /// Checks everything that a narinfo says of its NAR, and fills in the file's hash and size,
    /// which Nix up to 2.34 needs to sign it. Where they are `required`, its references must be to be
    /// had here.
    async fn admit(&self, info: &mut NarInfo, required: bool) -> Result<(), PutError> {
        let Some(name) = info.nar_name() else {
            return Err(PutError::NarElsewhere(info.url.clone()));
        };
        let missing = || PutError::NarMissing(info.url.clone());
        let facts = self.facts(name).await?.ok_or_else(missing)?;

        info.file_hash.get_or_insert(name.file_hash);
        info.file_size.get_or_insert(facts.file_size);
        check_against_nar(info, name, facts)?;
        match self.touch_references(info, required).await? {
            Some(missing) => Err(PutError::Reference(missing.clone())),
            None => Ok(()),
        }
    }

    /// Lets a collection that is about to take what a path refers to see that it is needed. The
    /// first that shall be here and is not, if there is one.
    async fn touch_references<'a>(
        &self,
        info: &'a NarInfo,
        required: bool,
    ) -> Result<Option<&'a StorePath>, StoreError> {
        let mut missing = None;
        for reference in info.references.iter().filter(|path| **path != info.store_path) {
            // What is looked up in memory never waits, and there can be thousands.
            tokio::task::consume_budget().await;
            let hash = reference.hash();
            let here = self.touch_if_present(&CachePath::NarInfo(hash)).await?;
            // Upstreams are queried only if it matters.
            let matters = !here && required;
            if matters && !self.has_elsewhere(&hash).await {
                missing = missing.or(Some(reference));
            }
        }
        Ok(missing)
    }
}

/// Whether the `URL` of a stored narinfo leads a client to a NAR of this cache, or to another server.
/// Otherwise the path is as good as absent: its NAR has a name that is not served here, as other
/// programs give it, or there is no `URL` at all.
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

/// Checks everything that a narinfo states of its NAR.
pub(super) fn check_against_nar(
    info: &NarInfo,
    name: NarName,
    facts: NarFacts,
) -> Result<(), PutError> {
    check("FileHash", info.file_hash.unwrap_or(name.file_hash), name.file_hash)?;
    check("FileSize", info.file_size.unwrap_or(facts.file_size), facts.file_size)?;
    check_compression(&info.compression, name, facts.contents)?;
    if let NarContents::Unpacked(unpacked) = facts.contents {
        check("NarHash", info.nar_hash, unpacked.nar_hash.unwrap_or(name.file_hash))?;
        check("NarSize", info.nar_size, unpacked.nar_size)?;
    }
    Ok(())
}

fn check<T: PartialEq + std::fmt::Display>(
    field: &'static str,
    stated: T,
    actual: T,
) -> Result<(), PutError> {
    if stated == actual {
        return Ok(());
    }
    Err(PutError::Field { field, stated: stated.to_string(), actual: actual.to_string() })
}
