//! NARs: a NAR is accepted only if its contents match its name.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tracing::warn;

use super::nar_facts::{KnownNarFacts, NarContents, NarFacts};
use super::receipt::UploadReceipt;
use super::state::Cache;
use crate::config::Verify;
use crate::ingest::{
    self, BodyError, Feed, MEMORY_BODY_LIMIT, PutError, Stage, Staged, StagingReader,
};
use crate::nix::cache_path::{NarExtension, NarName};
use crate::nix::{CachePath, Compression, Sha256Hash};
use crate::store::{Metadata, Stored, Upload};
use crate::unpack::{Allowance, InspectReader, UnpackError, Unpacked, object_reader, unpack};

/// A received NAR that is not stored yet.
pub(crate) struct Received {
    /// The name by the hash of the received file.
    pub name: NarName,
    /// The length of the file, in bytes.
    pub size: u64,
    /// None if the NAR was not unpacked during the transfer and the staged file cannot be read. The
    /// NAR is then unpacked when its narinfo is uploaded.
    pub contents: Option<NarContents>,
    pub upload: Box<dyn Upload>,
}

/// A received NAR, stored unless its upstream has `store=0`.
pub(crate) struct Ingested {
    pub stored: Stored,
    /// The length of the file, in bytes.
    pub size: u64,
    /// See [`Received::contents`].
    pub facts: Option<NarFacts>,
}

impl Cache {
    pub(super) async fn put_nar(
        &self,
        name: NarName,
        declared: Option<u64>,
        feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<UploadReceipt, PutError> {
        let path = CachePath::Nar(name);
        let Ingested { stored, size, facts } =
            if declared.is_some_and(|length| length <= MEMORY_BODY_LIMIT) {
                let bytes =
                    ingest::collect(&self.store, &path, declared, MEMORY_BODY_LIMIT, feed).await?;
                let bytes = bytes.into_bytes(&path).await?;
                let facts = self.inspect_small(name, bytes.clone()).await?;
                let stored = self.store_whole(&path, bytes).await?;
                Ingested { stored, size: facts.file_size, facts: Some(facts) }
            } else {
                let upload = ingest::start_upload(&self.store, &path, declared).await?;
                let limit = self.upload_limit();
                self.stream_nar(name, upload, declared, limit, |_| Ok(true), feed).await?
            };
        if let Some(facts) = facts {
            self.remember_facts(name, facts).await;
        }
        let nar_hash = facts.and_then(|facts| facts.contents.nar_hash(name));
        let file_hash = Some(name.file_hash);
        Ok(UploadReceipt { file_hash, nar_hash, ..UploadReceipt::plain(stored, size) })
    }

    async fn inspect_small(&self, name: NarName, bytes: Bytes) -> Result<NarFacts, PutError> {
        let verify = self.admission.verify;
        let metrics = Arc::clone(&self.metrics);
        let file_size = bytes.len() as u64;
        let plain = verify == Verify::File
            || Compression::detect(name.extension, &bytes) == Some(Compression::None);
        let check = move |allowance| {
            let started = Instant::now();
            check_hash(name, Sha256Hash::of(&bytes))?;
            let contents = contents(verify, name, bytes.as_ref(), file_size, allowance)?;
            metrics.verified(started.elapsed());
            Ok(NarFacts { file_size, contents })
        };
        // Hashing 64 KiB takes less time than a switch to another thread. Unpacking takes more.
        if plain {
            return check(Allowance::USUAL);
        }
        ingest::decode_at_rest(&self.decoders, Allowance::USUAL, check).await
    }

    /// Writes a NAR of any size into `upload`, and publishes it if `kept`, which is called after
    /// verification, returns true.
    pub(crate) async fn stream_nar(
        &self,
        name: NarName,
        upload: Box<dyn Upload>,
        declared: Option<u64>,
        limit: u64,
        kept: impl FnOnce(Option<NarFacts>) -> Result<bool, PutError> + Send + 'static,
        feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<Ingested, PutError> {
        let stage = Stage::new(upload, limit);
        let verify = self.admission.verify;
        let expected = Some(name.file_hash);
        let Received { name, size, contents, upload } =
            self.receive_nar(name.extension, expected, verify, stage, declared, feed).await?;
        let facts = contents.map(|contents| NarFacts { file_size: size, contents });
        let metrics = Arc::clone(&self.metrics);
        let commit = move || match kept(facts)? {
            true => ingest::commit(upload, &metrics).map(Some),
            false => Ok(None),
        };
        let stored = ingest::on_blocking_pool(commit).await?;
        if let Some(stored) = stored {
            self.count(&CachePath::Nar(name), stored, size);
        }
        Ok(Ingested { stored: stored.unwrap_or(Stored::Created), size, facts })
    }

    /// Receives a NAR of any size into `stage` and unpacks it: during the transfer if the body is not
    /// slow and a decoder is free, otherwise afterwards from the staged file. A file whose SHA-256 is
    /// not `expected` is an error.
    pub(crate) async fn receive_nar(
        &self,
        extension: NarExtension,
        expected: Option<Sha256Hash>,
        verify: Verify,
        mut stage: Stage,
        declared: Option<u64>,
        mut feed: Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
    ) -> Result<Received, PutError> {
        let beginning = beginning(&mut feed).await?;
        let compression = Compression::detect(extension, &beginning);
        let packed = match (verify, compression) {
            (Verify::File, _) => false,
            (Verify::Nar, Some(Compression::None)) => {
                stage.check_nar();
                false
            }
            // `unpack` reports a compression without a decoder after the file's first bytes.
            (Verify::Nar, _) => true,
        };
        let decoder = if packed && !feed.is_slow() { self.decoders.arriving() } else { None };
        let (stage, unpacked) = match decoder {
            Some(permit) => {
                let unpack = move |incoming: &mut StagingReader| {
                    let _permit = permit;
                    unpack(incoming, None, extension, Allowance::USUAL)
                };
                ingest::unpack_while_it_flows(stage, beginning, &mut feed, unpack).await?
            }
            None => {
                (ingest::on_blocking_pool(move || ingest::push(stage, &[beginning])).await?, None)
            }
        };
        let staged = ingest::receive(stage, feed).await?.finish();
        // The error for an incomplete or damaged body explains more than that of the decoder, so it
        // takes precedence.
        ingest::check_length(declared, staged.length)?;
        let Staged { hash, length: size, checked, mut busy, upload } = staged;
        let name = NarName { file_hash: hash, extension };
        if let Some(expected) = expected {
            check_hash(NarName { file_hash: expected, extension }, hash)?;
        }

        let unpacked = match unpacked {
            // The file's length is known now, which limits the unpacked size.
            Some(Err(UnpackError::Exceeded(more))) => Err(more.with_usual_output()),
            None if packed => Err(Allowance::USUAL),
            unpacked => Ok(unpacked.or(checked)),
        };
        let contents = match unpacked {
            Ok(unpacked) => Some(known_contents(name, unpacked)?),
            Err(allowance) => match upload.staged()? {
                Some(file) => {
                    let file = Arc::new(file);
                    let unpack = move |allowance| {
                        let file = ingest::read_at(&file, size);
                        let started = Instant::now();
                        let contents = contents(verify, name, file, size, allowance)?;
                        Ok((contents, started.elapsed()))
                    };
                    let unpacked = ingest::decode_at_rest(&self.decoders, allowance, unpack).await;
                    let (contents, took) = unpacked?;
                    busy += took;
                    Some(contents)
                }
                None => None,
            },
        };
        self.metrics.verified(busy);
        Ok(Received { name, size, contents, upload })
    }

    /// Remembers the facts about a NAR that has just been stored, until its narinfo arrives.
    ///
    /// An error of the store is ignored: the NAR is stored, and its facts can be read from it again.
    pub(crate) async fn remember_facts(&self, name: NarName, facts: NarFacts) {
        if let Ok(Some(Metadata { size, etag, .. })) = self.store.head(&CachePath::Nar(name)).await
            && size == facts.file_size
        {
            self.facts.insert(name, KnownNarFacts { facts, etag });
        }
    }

    /// Returns the remembered facts about a NAR, if the object is unchanged.
    pub(super) fn known_facts(&self, name: NarName, now: &Metadata) -> Option<NarFacts> {
        let known = self.facts.get(&name)?;
        (known.etag == now.etag).then_some(known.facts)
    }

    /// Returns the facts about the stored NAR, or `None` if it is absent. Reads the NAR if the
    /// facts are unknown. A NAR that does not match its name is quarantined, because Nix would
    /// never upload it again otherwise.
    pub(super) async fn nar_facts(&self, name: NarName) -> Result<Option<NarFacts>, PutError> {
        let path = CachePath::Nar(name);
        let Some(metadata) = self.store.head(&path).await? else {
            return Ok(None);
        };
        if !self.touch_since(&path, metadata.used).await? {
            return Ok(None);
        }
        if let Some(facts) = self.known_facts(name, &metadata) {
            return Ok(Some(facts));
        }
        // Concurrent requests for the same facts wait for one reader.
        let guard = match self.facts.get_value_or_guard_async(&name).await {
            Ok(known) if known.etag == metadata.etag => return Ok(Some(known.facts)),
            Ok(_) => None,
            Err(guard) => Some(guard),
        };
        let Some((etag, mut inspected)) = self.inspect_stored(name).await? else {
            return Ok(None);
        };
        if let Err(PutError::FileHash { .. }) = inspected {
            // The NAR is read again, over a new connection, before it is judged as damaged.
            match self.inspect_stored(name).await? {
                Some((again, second)) if again == etag => inspected = second,
                _ => return Err(PutError::NarChanged(path.key())),
            }
        }
        match inspected {
            Ok(facts) => {
                let known = KnownNarFacts { facts, etag };
                match guard {
                    // If the entry was dropped meanwhile, the next request reads the NAR again.
                    Some(guard) => drop(guard.insert(known)),
                    None => self.facts.insert(name, known),
                }
                Ok(Some(facts))
            }
            Err(PutError::FileHash { actual, .. }) => {
                warn!(%path, %actual, "quarantined a NAR whose hash does not match its name");
                self.store.quarantine(&path, &etag).await?;
                Err(PutError::NarDamaged(path.key()))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a stored NAR. Returns its entity tag with its facts or the error, or `None` if the NAR is
    /// absent.
    async fn inspect_stored(
        &self,
        name: NarName,
    ) -> Result<Option<(Bytes, Result<NarFacts, PutError>)>, PutError> {
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let (verify, path) = (self.admission.verify, CachePath::Nar(name));
        ingest::decode_at_rest(&self.decoders, Allowance::USUAL, move |allowance| {
            // Opened after the permit, so that NARs that wait for a permit need no file descriptor.
            let Some(object) = Handle::current().block_on(store.get(&path))? else {
                return Ok(None);
            };
            let started = Instant::now();
            let Metadata { size: file_size, etag, .. } = object.metadata;
            let inspected = inspect(
                verify,
                name,
                object_reader(object.content, file_size),
                file_size,
                allowance,
            )
            .map_err(|source| PutError::Read { key: path.key(), source })?;
            if let Some(Err(UnpackError::Exceeded(more))) = inspected.unpacked {
                return Err(UnpackError::Exceeded(more).into());
            }
            metrics.verified(started.elapsed());
            let named_after_its_contents = match &inspected.unpacked {
                Some(Ok(unpacked)) => unpacked.nar_hash == Some(name.file_hash),
                _ => false,
            };
            if named_after_its_contents && inspected.file_hash != name.file_hash {
                // Another program named the file after the NAR inside. It matches its narinfo.
                return Err(PutError::FileHash {
                    expected: name.file_hash,
                    actual: inspected.file_hash,
                });
            }
            let facts = check_hash(name, inspected.file_hash).and_then(|()| {
                Ok(NarFacts { file_size, contents: known_contents(name, inspected.unpacked)? })
            });
            Ok(Some((etag, facts)))
        })
        .await
    }
}

/// The number of bytes from which the compression and the window size of a file are known.
const BEGINNING: usize = 64;

/// Receives the first bytes of a body: at least [`BEGINNING`], unless the body is shorter.
async fn beginning(
    feed: &mut Feed<impl Stream<Item = Result<Bytes, BodyError>> + Unpin>,
) -> Result<Bytes, PutError> {
    let mut beginning = BytesMut::new();
    while beginning.len() < BEGINNING {
        let Some(batch) = feed.next().await? else {
            break;
        };
        batch.iter().for_each(|chunk| beginning.extend_from_slice(chunk));
    }
    Ok(beginning.freeze())
}

/// Unpacks a NAR, if `verify` requires it.
fn contents(
    verify: Verify,
    name: NarName,
    input: impl BufRead,
    length: u64,
    allowance: Allowance,
) -> Result<NarContents, UnpackError> {
    let unpack = || unpack(input, Some(length), name.extension, allowance);
    let unpacked = (verify == Verify::Nar).then(unpack);
    known_contents(name, unpacked)
}

/// Converts the result of unpacking, and logs if there is no decoder for the NAR.
fn known_contents(
    name: NarName,
    unpacked: Option<Result<Unpacked, UnpackError>>,
) -> Result<NarContents, UnpackError> {
    let contents = NarContents::of(unpacked)?;
    if let NarContents::NoDecoder(compression) = contents {
        warn!(
            "the contents of {} are not verified: there is no decoder for {compression}",
            CachePath::Nar(name)
        );
    }
    Ok(contents)
}

/// A NAR that was read to its end.
pub(crate) struct Inspected {
    /// SHA-256 of the file.
    pub file_hash: Sha256Hash,
    /// The result of unpacking, or `None` if that was not requested.
    pub unpacked: Option<Result<Unpacked, UnpackError>>,
}

/// Reads a NAR to its end, even if it cannot be unpacked. The exception is [`UnpackError::Exceeded`]:
/// the caller reads the whole NAR again, so the rest is not read, and `file_hash` means nothing.
pub(crate) fn inspect(
    verify: Verify,
    name: NarName,
    input: impl BufRead,
    length: u64,
    allowance: Allowance,
) -> io::Result<Inspected> {
    let mut hasher = Sha256::new();
    let mut file = InspectReader::new(input, |bytes: &[u8]| hasher.update(bytes));
    let unpacked =
        (verify == Verify::Nar).then(|| unpack(&mut file, Some(length), name.extension, allowance));
    if !matches!(unpacked, Some(Err(UnpackError::Exceeded(_)))) {
        io::copy(&mut file, &mut io::sink())?;
    }
    drop(file);
    Ok(Inspected { file_hash: Sha256Hash::new(hasher.finalize().into()), unpacked })
}

fn check_hash(name: NarName, actual: Sha256Hash) -> Result<(), PutError> {
    match name.file_hash {
        expected if expected == actual => Ok(()),
        expected => Err(PutError::FileHash { expected, actual }),
    }
}
