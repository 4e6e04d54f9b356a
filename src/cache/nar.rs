//! NARs: a NAR is accepted only if its contents match its name.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tracing::warn;

use super::decode_budget::Allowance;
use super::feed::Feed;
use super::ingest::{self, SMALL, check_length, push};
use super::inspect_reader::InspectReader;
use super::stage::{Stage, Staged};
use super::staging_reader::StagingReader;
use super::unpack::{UnpackError, Unpacked, unpack};
use super::{BodyError, Cache, PutError, UploadReceipt};
use crate::config::Verify;
use crate::nix::cache_path::{NarExtension, NarName};
use crate::nix::{CachePath, Compression, Sha256Hash};
use crate::store::{Content, Metadata, Stored, Upload};

/// The verified facts about a NAR, kept in memory for its narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NarFacts {
    /// The length of the file, in bytes.
    pub file_size: u64,
    pub contents: NarContents,
}

/// The facts about an object, and its entity tag.
#[derive(Debug, Clone)]
pub(super) struct KnownNarFacts {
    facts: NarFacts,
    etag: Bytes,
}

/// The verified contents of a NAR file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NarContents {
    /// It was unpacked, and is a NAR.
    Unpacked(Unpacked),
    /// It begins like a file of this compression, for which there is no decoder.
    NoDecoder(Compression),
    /// It was not read: only the file counts where `NIX_STORED_VERIFY` is `file`.
    NotRead,
}

impl NarContents {
    /// Converts the result of unpacking. Only a compression without a decoder passes without being
    /// unpacked, if the file has this format.
    pub fn of(unpacked: Option<Result<Unpacked, UnpackError>>) -> Result<Self, UnpackError> {
        match unpacked {
            None => Ok(Self::NotRead),
            Some(Ok(unpacked)) => Ok(Self::Unpacked(unpacked)),
            Some(Err(UnpackError::NoDecoder(compression))) => Ok(Self::NoDecoder(compression)),
            Some(Err(error)) => Err(error),
        }
    }

    /// SHA-256 of the NAR in the file of this name, where it was unpacked.
    pub fn nar_hash(&self, name: NarName) -> Option<Sha256Hash> {
        match self {
            Self::Unpacked(unpacked) => Some(unpacked.nar_hash.unwrap_or(name.file_hash)),
            Self::NoDecoder(_) | Self::NotRead => None,
        }
    }
}

/// A received NAR that is not stored yet.
pub(super) struct Received {
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
pub(super) struct Ingested {
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
        let Ingested { stored, size, facts } = if declared.is_some_and(|length| length <= SMALL) {
            let bytes = ingest::collect(&self.store, &path, declared, SMALL, feed).await?;
            let bytes = bytes.into_bytes(&path).await?;
            let facts = self.inspect_small(name, bytes.clone()).await?;
            let stored = self.store_whole(&path, bytes).await?;
            Ingested { stored, size: facts.file_size, facts: Some(facts) }
        } else {
            let upload = ingest::begin(&self.store, &path, declared).await?;
            let limit = self.admission.max_upload_size.unwrap_or(u64::MAX);
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
            let begun = Instant::now();
            check_hash(name, Sha256Hash::of(&bytes))?;
            let contents = contents(verify, name, bytes.as_ref(), file_size, allowance)?;
            metrics.verified(begun.elapsed());
            Ok(NarFacts { file_size, contents })
        };
        // Hashing so little takes less time than going to another thread; unpacking takes more.
        if plain {
            return check(Allowance::USUAL);
        }
        ingest::decode_at_rest(&self.decoders, Allowance::USUAL, check).await
    }

    /// Writes a NAR of any size into `upload`, and publishes it if `kept`, which is called after
    /// verification, returns true.
    pub(super) async fn stream_nar(
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
        let stored = ingest::in_the_pool(commit).await?;
        if let Some(stored) = stored {
            self.count(&CachePath::Nar(name), stored, size);
        }
        Ok(Ingested { stored: stored.unwrap_or(Stored::Created), size, facts })
    }

    /// Receives a NAR of any size into `stage` and unpacks it: during the transfer if the body is not
    /// slow and a decoder is free, otherwise afterwards from the staged file. A file whose SHA-256 is
    /// not `expected` is an error.
    pub(super) async fn receive_nar(
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
            // Without a decoder it is soon known what it is.
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
            None => (ingest::in_the_pool(move || push(stage, &[beginning])).await?, None),
        };
        let staged = ingest::receive(stage, feed).await?.finish();
        // An incomplete or damaged body is a better reason than the error of the decoder.
        check_length(declared, staged.length)?;
        let Staged { hash, length: size, checked, mut busy, upload } = staged;
        let name = NarName { file_hash: hash, extension };
        if let Some(expected) = expected {
            check_hash(NarName { file_hash: expected, extension }, hash)?;
        }

        let unpacked = match unpacked {
            // Now its length is known, and so how much it may become.
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
                        let begun = Instant::now();
                        let contents = contents(verify, name, file, size, allowance)?;
                        Ok((contents, begun.elapsed()))
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
    pub(super) async fn remember_facts(&self, name: NarName, facts: NarFacts) {
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
    pub(super) async fn facts(&self, name: NarName) -> Result<Option<NarFacts>, PutError> {
        let path = CachePath::Nar(name);
        let there = self.store.head(&path).await?;
        #[cfg(feature = "upstream")]
        let there = match there {
            None if self.await_nar(name).await.unwrap_or(false) => self.store.head(&path).await?,
            there => there,
        };
        let Some(metadata) = there else {
            return Ok(None);
        };
        if !self.need(&path, metadata.used).await? {
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
            // It is read once more, over a new connection, before anything follows from that.
            match self.inspect_stored(name).await? {
                Some((again, second)) if again == etag => inspected = second,
                _ => return Err(PutError::NarChanged(path.key())),
            }
        }
        match inspected {
            Ok(facts) => {
                let known = KnownNarFacts { facts, etag };
                match guard {
                    // Dropped from memory since, it is read again the next time.
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

    /// Reads a NAR in the store. Its entity tag and the facts, or why it has none; none if it is
    /// absent.
    async fn inspect_stored(
        &self,
        name: NarName,
    ) -> Result<Option<(Bytes, Result<NarFacts, PutError>)>, PutError> {
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let (verify, path) = (self.admission.verify, CachePath::Nar(name));
        ingest::decode_at_rest(&self.decoders, Allowance::USUAL, move |allowance| {
            // It is opened here, so that those that wait for a permit have no file open.
            let Some(object) = Handle::current().block_on(store.get(&path))? else {
                return Ok(None);
            };
            let begun = Instant::now();
            let Metadata { size: file_size, etag, .. } = object.metadata;
            let inspected =
                inspect(verify, name, reader(object.content, file_size), file_size, allowance)
                    .map_err(|source| PutError::Read { key: path.key(), source })?;
            if let Some(Err(UnpackError::Exceeded(more))) = inspected.unpacked {
                return Err(UnpackError::Exceeded(more).into());
            }
            metrics.verified(begun.elapsed());
            let named_after_its_contents = match &inspected.unpacked {
                Some(Ok(unpacked)) => unpacked.nar_hash == Some(name.file_hash),
                _ => false,
            };
            if named_after_its_contents && inspected.file_hash != name.file_hash {
                // A NAR named by another program: it matches its narinfo, and is kept.
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

/// How much of a NAR must be known to see how it is compressed, and which window it needs.
const BEGINNING: usize = 64;

/// The first bytes of a body: a whole batch where it comes at once, and [`BEGINNING`] in any case if
/// there are so many.
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

/// Unpacks a NAR, if NARs are to be unpacked.
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

/// Logs that a NAR could not be unpacked because there is no decoder for it.
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
pub(super) struct Inspected {
    /// SHA-256 of the file.
    pub file_hash: Sha256Hash,
    /// The result of unpacking, or `None` if that was not requested.
    pub unpacked: Option<Result<Unpacked, UnpackError>>,
}

/// Reads a NAR to its end, whatever comes of unpacking it. But where that needs more than is allowed
/// the rest is not read and its hash means nothing, because all of it is to be read again.
pub(super) fn inspect(
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

/// Reads the `size` bytes of an object. See [`Whole`].
pub(super) fn reader(content: Content, size: u64) -> Box<dyn BufRead> {
    match content {
        Content::Bytes(bytes) => Box::new(Whole::new(io::Cursor::new(bytes), size)),
        Content::File(file) => {
            Box::new(Whole::new(BufReader::with_capacity(SMALL as usize, file), size))
        }
        Content::Stream(bytes) => {
            let bridge = SyncIoBridge::new(StreamReader::new(bytes.read(0..size)));
            Box::new(Whole::new(BufReader::with_capacity(SMALL as usize, InPlace(bridge)), size))
        }
    }
}

/// A reader of an object that reports every failure to read the object to its end.
///
/// A decoder may report a read error of its input as damaged data, and a stream that has failed may
/// end as if it were complete. So this reader repeats its first error on every later read, and an end
/// before the object's last byte is an error. Otherwise a failed read would look like a damaged NAR.
struct Whole<R> {
    inner: R,
    left: u64,
    failed: Option<(io::ErrorKind, String)>,
}

impl<R> Whole<R> {
    fn new(inner: R, size: u64) -> Self {
        Self { inner, left: size, failed: None }
    }

    fn fail(&mut self, error: &io::Error) -> io::Error {
        let (kind, text) = (error.kind(), crate::logging::with_causes(error));
        self.failed = Some((kind, text.clone()));
        io::Error::new(kind, text)
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Ok(()),
        }
    }
}

impl<R: BufRead> BufRead for Whole<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        loop {
            match self.inner.fill_buf() {
                Ok([]) if self.left > 0 => {
                    let text = format!("the file ended {} bytes early", self.left);
                    return Err(self.fail(&io::Error::new(io::ErrorKind::UnexpectedEof, text)));
                }
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(&error)),
            }
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u64);
        self.inner.consume(count);
    }
}

impl<R: BufRead> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Waits on a thread that may wait, even within a future that this thread drives by itself.
struct InPlace<R>(R);

impl<R: Read> Read for InPlace<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        tokio::task::block_in_place(|| self.0.read(buffer))
    }
}

/// Checks that a narinfo states the compression that its NAR has, or one that fits the NAR's name
/// where its contents were not read.
pub(super) fn check_compression(
    stated: &str,
    name: NarName,
    contents: NarContents,
) -> Result<(), PutError> {
    let actual = match contents {
        NarContents::Unpacked(Unpacked { compression, .. })
        | NarContents::NoDecoder(compression) => Some(compression),
        NarContents::NotRead => None,
    };
    let fits = stated.parse::<Compression>().is_ok_and(|stated| match actual {
        Some(actual) => stated == actual,
        None => stated.extension() == name.extension,
    });
    if fits {
        return Ok(());
    }
    let actual = match actual {
        Some(actual) => actual.to_string(),
        None => format!("one that goes with the name {name}"),
    };
    Err(PutError::Field { field: "Compression", stated: stated.to_owned(), actual })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails once, and ends then, as a stream does.
    struct FailsOnce(bool);

    impl Read for FailsOnce {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            match std::mem::replace(&mut self.0, true) {
                false => Err(io::Error::other("the server went away")),
                true => Ok(0),
            }
        }
    }

    #[test]
    fn an_error_comes_again_when_it_is_read_again() {
        let mut whole = Whole::new(BufReader::new(FailsOnce(false)), 10);
        for _ in 0..3 {
            let error = whole.read(&mut [0; 4]).unwrap_err();
            assert!(error.to_string().contains("the server went away"), "{error}");
        }
    }

    #[test]
    fn an_end_before_the_last_byte_is_an_error() {
        let mut text = String::new();
        let whole = |size| Whole::new(io::Cursor::new(b"12345"), size);
        assert_eq!(whole(5).read_to_string(&mut text).unwrap(), 5);
        let mut short = whole(6);
        for _ in 0..2 {
            let error = short.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
