//! The narinfo is the commit: with it a store path becomes visible, so it is admitted only when it
//! is true.

use bytes::Bytes;
use futures_util::Stream;
use tracing::warn;

use super::ingest::{self, COLLECT_LIMIT};
use super::nar::{Facts, check_compression};
use super::{Accepted, BodyError, Cache, PutError, Taken};
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, Compression, NarInfo, PublicKey, Signature, StorePath, StorePathHash};
use crate::store::{Content, StoreError};

/// What became of the narinfo of another cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adopted {
    /// It is new here.
    New,
    /// It was here, with the same contents.
    Known,
    /// There is one here with other contents, which stays.
    Differs,
}

impl Cache {
    /// Takes a narinfo when it is what its name says and true of a NAR that is here.
    pub(super) async fn put_narinfo(
        &self,
        hash: StorePathHash,
        encoding: Compression,
        declared: Option<u64>,
        body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin,
    ) -> Result<Accepted, PutError> {
        let text = ingest::collect(declared, COLLECT_LIMIT, body).await?;
        let text = ingest::decode(encoding, text).await?;
        let size = text.len() as u64;
        let mut info = NarInfo::parse(&text, &self.info.store_dir)?;
        // Who uploads a path has it, wherever it was mirrored from before.
        info.set_upstream(None);
        let actual = info.store_path.hash();
        if actual != hash {
            return Err(PutError::HashPart { expected: hash, actual });
        }
        let signed_by = self.check_signatures(&info)?;

        // Two uploads of one path's narinfo would each merge with what was there before both.
        let _turn = self.turns.take(&hash).await;
        let path = CachePath::NarInfo(hash);
        let taken = match self.read_narinfo(&path).await? {
            None => Taken::New,
            Some(mut ours)
                if ours.nar_hash == info.nar_hash && self.still_has(&path, &ours).await? =>
            {
                // Nix signs again from its memory of up to 30 days ago, so everything but the
                // signatures may be out of date (Nix's `src/libstore/nar-info-disk-cache.cc`).
                // From now on it is here because it was uploaded here.
                let was_mirrored = ours.upstream().is_some();
                ours.set_upstream(None);
                if merge_signatures(&mut ours, &info) || was_mirrored {
                    // Going through a folder may miss the name whose file is replaced just then, and
                    // with it why these stay.
                    self.rely_on_references(&ours, false).await?;
                    self.publish(hash, &ours).await?;
                }
                return Ok(self.accepted(Taken::Again, size, &info, signed_by));
            }
            Some(ours) => {
                if ours.nar_hash != info.nar_hash {
                    warn!(
                        store_path = %info.store_path, before = %ours.nar_hash, now = %info.nar_hash,
                        "a store path was uploaded again with other contents: its build is not \
                         reproducible, or one of the two is not what it claims to be"
                    );
                }
                Taken::Again
            }
        };
        self.admit(&mut info, self.admission.require_references).await?;
        self.publish(hash, &info).await?;
        Ok(self.accepted(taken, size, &info, signed_by))
    }

    fn accepted(
        &self,
        taken: Taken,
        size: u64,
        info: &NarInfo,
        signed_by: Option<String>,
    ) -> Accepted {
        let unchecked = self.admission.trusted_public_keys.is_empty();
        let keys = info.signatures.iter().map(Signature::key_name).collect::<Vec<_>>();
        Accepted {
            store_path: Some(self.info.store_dir.join(&info.store_path)),
            file_hash: info.file_hash.or_else(|| Some(info.nar_name()?.file_hash)),
            nar_hash: Some(info.nar_hash),
            signed_by,
            unchecked_keys: (unchecked && !keys.is_empty()).then(|| keys.join(" ")),
            ..Accepted::plain(taken, size)
        }
    }

    /// Publishes the narinfo of a path that came from an upstream, with a line that says so.
    #[cfg(feature = "upstream")]
    pub(super) async fn mirror_narinfo(
        &self,
        mut info: NarInfo,
        upstream: &str,
    ) -> Result<(), PutError> {
        let hash = info.store_path.hash();
        let _turn = self.turns.take(&hash).await;
        // What somebody uploaded in the meantime is ours.
        if self.read_narinfo(&CachePath::NarInfo(hash)).await?.is_some() {
            return Ok(());
        }
        // What it refers to comes when somebody asks for it.
        self.admit(&mut info, false).await?;
        info.set_upstream(Some(upstream));
        self.publish(hash, &info).await
    }

    /// Takes the narinfo of another cache, with the line that says where that mirrored it from.
    pub(super) async fn adopt_narinfo(&self, mut info: NarInfo) -> Result<Adopted, PutError> {
        if info.upstream().is_none() {
            // What was mirrored was checked with the keys of its upstream then.
            self.check_signatures(&info)?;
        }
        let hash = info.store_path.hash();
        let _turn = self.turns.take(&hash).await;
        let path = CachePath::NarInfo(hash);
        match self.read_narinfo(&path).await? {
            Some(ours) if ours.nar_hash != info.nar_hash => return Ok(Adopted::Differs),
            Some(mut ours) if self.still_has(&path, &ours).await? => {
                if merge_signatures(&mut ours, &info) {
                    self.publish(hash, &ours).await?;
                }
                return Ok(Adopted::Known);
            }
            _ => {}
        }
        self.admit(&mut info, false).await?;
        self.publish(hash, &info).await?;
        Ok(Adopted::New)
    }

    async fn publish(&self, hash: StorePathHash, info: &NarInfo) -> Result<(), PutError> {
        let text = info.to_string().into();
        let put = self.store_whole(&CachePath::NarInfo(hash), text).await;
        // Even where it failed, nobody knows how far it came.
        self.hot.forget(&hash);
        put?;
        Ok(())
    }

    /// The narinfo at `path`, if there is one that can be read. One that cannot is as good as none:
    /// whoever uploads a better one shall replace it.
    pub(super) async fn read_narinfo(
        &self,
        path: &CachePath,
    ) -> Result<Option<NarInfo>, StoreError> {
        let Some(object) = self.store.get(path).await? else {
            return Ok(None);
        };
        let Content::Bytes(text) = object.content else {
            return Ok(None);
        };
        Ok(NarInfo::parse(&text, &self.info.store_dir).ok())
    }

    /// Whether a narinfo of ours and its NAR are here. If so they will not be collected: whoever
    /// uploads them again may take them for new.
    async fn still_has(&self, path: &CachePath, info: &NarInfo) -> Result<bool, PutError> {
        match info.nar_name() {
            Some(name) => {
                Ok(self.rely_on(path).await? && self.rely_on(&CachePath::Nar(name)).await?)
            }
            None => Ok(false),
        }
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
        match self.rely_on_references(info, required).await? {
            Some(missing) => Err(PutError::Reference(missing.clone())),
            None => Ok(()),
        }
    }

    /// Lets a collection that is about to take what a path refers to see that it is needed. The
    /// first that shall be here and is not, if there is one.
    async fn rely_on_references<'a>(
        &self,
        info: &'a NarInfo,
        required: bool,
    ) -> Result<Option<&'a StorePath>, StoreError> {
        let mut missing = None;
        for reference in info.references.iter().filter(|path| **path != info.store_path) {
            let hash = reference.hash();
            let here = self.rely_on(&CachePath::NarInfo(hash)).await?;
            // Upstreams are asked only where it matters.
            let matters = !here && required;
            if matters && !self.has_elsewhere(&hash).await {
                missing = missing.or(Some(reference));
            }
        }
        Ok(missing)
    }

    /// Says which of the trusted keys have signed it. None are trusted where none are configured.
    pub(super) fn check_signatures(&self, info: &NarInfo) -> Result<Option<String>, PutError> {
        let keys = &self.admission.trusted_public_keys;
        if keys.is_empty() {
            return Ok(None);
        }
        let fingerprint = info.fingerprint();
        let has_signed = |key: &&PublicKey| {
            info.signatures.iter().any(|signature| key.verifies(&fingerprint, signature))
        };
        let signed_by: Vec<&str> = keys.iter().filter(has_signed).map(PublicKey::name).collect();
        if !signed_by.is_empty() {
            return Ok(Some(signed_by.join(" ")));
        }
        let list = |names: Vec<&str>| names.join(", ");
        Err(PutError::Signature {
            trusted: list(keys.iter().map(PublicKey::name).collect()),
            found: list(info.signatures.iter().map(Signature::key_name).collect()),
        })
    }
}

/// Checks everything that a narinfo states of its NAR.
pub(super) fn check_against_nar(
    info: &NarInfo,
    name: NarName,
    facts: Facts,
) -> Result<(), PutError> {
    check("FileHash", info.file_hash.unwrap_or(name.file_hash), name.file_hash)?;
    check("FileSize", info.file_size.unwrap_or(facts.file_size), facts.file_size)?;
    check_compression(&info.compression, name, facts.unpacked)?;
    if let Some(unpacked) = facts.unpacked {
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

/// Takes over the signatures that we do not have; says whether there were any.
fn merge_signatures(ours: &mut NarInfo, theirs: &NarInfo) -> bool {
    let before = ours.signatures.len();
    for signature in &theirs.signatures {
        if !ours.signatures.contains(signature) {
            ours.signatures.push(signature.clone());
        }
    }
    // As Nix orders them.
    ours.signatures.sort();
    ours.signatures.len() > before
}
