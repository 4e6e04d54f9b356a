//! Examines a NAR with all narinfos that name it, or another object.

use std::error::Error;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::report::{Damage, DamageKind, Note, NoteKind};
use crate::cache::{
    Cache, Inspected, NarContents, NarFacts, PutError, UnpackError, check_against_nar, inspect,
};
use crate::config::Verify;
use crate::logging::with_causes;
use crate::nix::cache_path::NarName;
use crate::nix::narinfo::ParseNarInfoError;
use crate::nix::{
    CachePath, Compression, LenientNarInfo, NarInfo, Sha256Hash, StorePathHash, narinfo,
};
use crate::store::{Content, Object, StoreError, background, foreign_key};
use crate::unpack::{Allowance, InspectReader, object_reader};

/// An object, or a NAR with its narinfos, that is examined as a unit.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// A NAR and the narinfos that name it, so that the NAR is read only once.
    Nar(NarName, Vec<StorePathHash>),
    /// A narinfo that names no NAR, or cannot be read.
    NarInfo(StorePathHash),
    /// Another object.
    Side(CachePath),
}

/// The findings about a subject.
#[derive(Default)]
pub(super) struct Findings {
    /// The suspects, in the order of quarantining.
    pub suspects: Vec<Suspect>,
    pub notes: Vec<Note>,
}

/// A suspected damage, which has to be confirmed by another examination.
pub(super) struct Suspect {
    pub damage: Damage,
    /// The entity tag of the examined object, or `None` if the object could not be read. Such an
    /// object is never quarantined.
    pub etag: Option<Bytes>,
}

/// The result of examining a NAR.
enum NarVerdict {
    Absent,
    Unreadable,
    Damaged {
        expected: String,
        actual: String,
    },
    /// The file hash differs from the name. That is damage, unless a narinfo states this hash:
    /// other programs name NARs differently.
    Misnamed {
        file_hash: Sha256Hash,
        facts: NarFacts,
    },
    Intact(NarFacts),
}

/// Examines objects of a cache.
pub(super) struct Examiner<'a> {
    pub cache: &'a Cache,
    /// The depth of the examination: whether NARs are unpacked.
    pub depth: Verify,
    /// The number of bytes that have been read.
    pub bytes: &'a AtomicU64,
}

impl Examiner<'_> {
    /// Examines `subject`. Must be called on a background thread, because it hashes and blocks on
    /// the disk.
    pub(super) async fn examine(&self, subject: &Subject) -> Result<Findings, StoreError> {
        let mut findings = Findings::default();
        match subject {
            Subject::NarInfo(hash) => {
                self.examine_narinfo(*hash, None, &mut findings).await?;
            }
            Subject::Side(path) => self.examine_side_file(path, &mut findings).await?,
            Subject::Nar(name, narinfos) => {
                let mut nar_findings = Findings::default();
                let nar = self.examine_nar(*name, &mut nar_findings).await?;
                let mut is_intact_by_narinfo = false;
                for hash in narinfos {
                    let nar = Some((*name, &nar));
                    is_intact_by_narinfo |= self.examine_narinfo(*hash, nar, &mut findings).await?;
                }
                if let (true, NarVerdict::Misnamed { file_hash, .. }) = (is_intact_by_narinfo, &nar)
                {
                    nar_findings.suspects.clear();
                    let text = format!(
                        "the narinfo has its file hash {file_hash}, but Nix would give this file \
                         another name; nix-stored migrate copies it under that name"
                    );
                    nar_findings.note(NoteKind::Layout, &CachePath::Nar(*name), text);
                }
                let first = findings.suspects.first();
                let store_path = first.and_then(|suspect| suspect.damage.store_path.clone());
                for mut suspect in nar_findings.suspects {
                    suspect.damage.store_path.clone_from(&store_path);
                    findings.suspects.push(suspect);
                }
                findings.notes.extend(nar_findings.notes);
            }
        }
        Ok(findings)
    }

    /// Opens an object. Returns `None` if it is absent or cannot be read. An unreadable object is
    /// added to the findings.
    async fn open(
        &self,
        path: &CachePath,
        findings: &mut Findings,
    ) -> Result<Option<Object>, StoreError> {
        match self.cache.store().get(path).await {
            Ok(object) => Ok(object),
            // The store is overloaded. That says nothing about the object.
            Err(error @ StoreError::Busy { .. }) => Err(error),
            Err(error) => {
                findings.unreadable(path, &error);
                Ok(None)
            }
        }
    }

    async fn examine_nar(
        &self,
        name: NarName,
        findings: &mut Findings,
    ) -> Result<NarVerdict, StoreError> {
        let path = CachePath::Nar(name);
        let mut allowance = Allowance::USUAL;
        let (metadata, inspected) = loop {
            let _permit = self.cache.decoders().at_rest(allowance).await;
            let Some(Object { metadata, content }) = self.open(&path, findings).await? else {
                let absent = findings.suspects.is_empty();
                return Ok(if absent { NarVerdict::Absent } else { NarVerdict::Unreadable });
            };
            let input = counted(content, metadata.size, self.bytes);
            match inspect(self.depth, name, input, metadata.size, allowance) {
                Ok(Inspected { unpacked: Some(Err(UnpackError::Exceeded(more))), .. }) => {
                    allowance = more;
                }
                Ok(inspected) => break (metadata, inspected),
                Err(error) => {
                    findings.unreadable(&path, &ReadObjectError(error));
                    return Ok(NarVerdict::Unreadable);
                }
            }
        };
        let file_size = metadata.size;
        let Inspected { file_hash, unpacked } = inspected;
        let contents = match NarContents::of(unpacked) {
            Ok(contents) => contents,
            Err(error) => {
                let (kind, expected, actual) = if file_hash == name.file_hash {
                    (DamageKind::Unpack, "a NAR".to_owned(), with_causes(&error))
                } else {
                    (DamageKind::Nar, name.file_hash.to_string(), file_hash.to_string())
                };
                let damage = damage(kind, &path, &expected, &actual);
                findings.suspects.push(Suspect { damage, etag: Some(metadata.etag) });
                return Ok(NarVerdict::Damaged { expected, actual });
            }
        };
        if let NarContents::NoDecoder(compression) = contents {
            let text =
                format!("there is no decoder for {compression}: only its file hash was verified");
            findings.note(NoteKind::NoDecoder, &path, text);
        }
        let facts = NarFacts { file_size, contents };
        if file_hash == name.file_hash {
            return Ok(NarVerdict::Intact(facts));
        }
        let (expected, actual) = (name.file_hash.to_string(), file_hash.to_string());
        let damage = damage(DamageKind::Nar, &path, &expected, &actual);
        findings.suspects.push(Suspect { damage, etag: Some(metadata.etag) });
        Ok(NarVerdict::Misnamed { file_hash, facts })
    }

    /// Examines a narinfo. `nar` is the NAR that the narinfo named when the cache was listed.
    /// Returns true if this NAR matches the narinfo, and only its name differs from the one that Nix
    /// gives it.
    async fn examine_narinfo(
        &self,
        hash: StorePathHash,
        nar: Option<(NarName, &NarVerdict)>,
        findings: &mut Findings,
    ) -> Result<bool, StoreError> {
        let path = CachePath::NarInfo(hash);
        let Some(object) = self.open(&path, findings).await? else {
            return Ok(false);
        };
        let (size, etag) = (object.metadata.size, object.metadata.etag);
        if size > narinfo::MAX_SIZE {
            let reason = format!("it has {size} bytes; the limit is {}", narinfo::MAX_SIZE);
            findings.unreadable(&path, &ReadObjectError(io::Error::other(reason)));
            return Ok(false);
        }
        let mut text = Vec::new();
        if let Err(error) = object_reader(object.content, size).read_to_end(&mut text) {
            findings.unreadable(&path, &ReadObjectError(error));
            return Ok(false);
        }
        let mut store_path = None;
        let judged = match self.judge(hash, &text, nar, &mut store_path) {
            Ok(NarInfoVerdict::NarElsewhere(info)) => {
                self.judge_by_nar_elsewhere(&info, findings).await?
            }
            judged => judged,
        };
        let damage = match judged {
            Ok(NarInfoVerdict::NarElsewhere(_)) => return Ok(false),
            Ok(NarInfoVerdict::Intact) => return Ok(false),
            Ok(NarInfoVerdict::IntactMisnamed) => return Ok(true),
            Ok(NarInfoVerdict::Noted(kind, text)) => {
                findings.note(kind, &path, text);
                return Ok(false);
            }
            Err(NarInfoFault::OfNarInfo(error)) => Damage::of_narinfo(path, store_path, *error),
            Err(NarInfoFault::OfNar { expected, actual }) => {
                Damage { store_path, ..damage(DamageKind::NarDamaged, &path, &expected, &actual) }
            }
        };
        findings.suspects.push(Suspect { damage, etag: Some(etag) });
        Ok(false)
    }

    /// Compares a narinfo with its NAR. Sets `store_path` if the narinfo can be parsed.
    fn judge(
        &self,
        hash: StorePathHash,
        text: &[u8],
        nar: Option<(NarName, &NarVerdict)>,
        store_path: &mut Option<String>,
    ) -> Result<NarInfoVerdict, NarInfoFault> {
        let info = match NarInfo::parse(text, &self.cache.info().store_dir) {
            Ok(info) => info,
            Err(error) => return judge_leniently(hash, text, nar, error),
        };
        *store_path = Some(self.cache.info().store_dir.join(&info.store_path));
        let actual = info.store_path.hash();
        if actual != hash {
            return Err(PutError::HashPart { expected: hash, actual }.into());
        }
        self.cache.signatures().check_stored(&info)?;
        let Some(name) = info.fetched_nar() else {
            return Ok(NarInfoVerdict::NarElsewhere(Box::new(info)));
        };
        match nar {
            Some((examined, nar)) if examined == name => match nar {
                NarVerdict::Absent => return Err(PutError::NarMissing(info.url).into()),
                // Examining the NAR has reported it.
                NarVerdict::Unreadable => {}
                NarVerdict::Damaged { expected, actual } => {
                    return Err(NarInfoFault::OfNar {
                        expected: expected.clone(),
                        actual: actual.clone(),
                    });
                }
                NarVerdict::Misnamed { file_hash, facts } => {
                    let actual_name = NarName { file_hash: *file_hash, ..name };
                    let stated = info.file_hash.unwrap_or(*file_hash);
                    if stated != *file_hash {
                        return Err(NarInfoFault::OfNar {
                            expected: name.file_hash.to_string(),
                            actual: file_hash.to_string(),
                        });
                    }
                    check_against_nar(&info, actual_name, *facts)?;
                    return Ok(NarInfoVerdict::IntactMisnamed);
                }
                NarVerdict::Intact(facts) => check_against_nar(&info, name, *facts)?,
            },
            // The narinfo was replaced since the cache was listed. Its upload was verified.
            _ => {}
        }
        if self.cache.signatures().is_mirrored_without_keys(&info)
            && !self.cache.admission().trusted_public_keys.is_empty()
        {
            let text = "mirrored from an upstream without trusted-public-keys, so its signatures \
                        were not verified";
            return Ok(NarInfoVerdict::Noted(NoteKind::Unsigned, text.to_owned()));
        }
        Ok(NarInfoVerdict::Intact)
    }

    /// Compares a narinfo with its NAR, whose name is not served.
    async fn judge_by_nar_elsewhere(
        &self,
        info: &NarInfo,
        findings: &mut Findings,
    ) -> Result<Result<NarInfoVerdict, NarInfoFault>, StoreError> {
        let nar_elsewhere = || Err(PutError::NarElsewhere(info.url.clone()).into());
        let (Some(key), Ok(compression)) =
            (foreign_key(&info.url), info.compression.parse::<Compression>())
        else {
            return Ok(nar_elsewhere());
        };
        let extension = compression.extension();
        let stated = NarName { file_hash: info.file_hash.unwrap_or(info.nar_hash), extension };
        let mut allowance = Allowance::USUAL;
        let (file_size, inspected) = loop {
            let _permit = self.cache.decoders().at_rest(allowance).await;
            let Some(Object { metadata, content }) = self.cache.store().get_foreign(&key).await?
            else {
                return Ok(nar_elsewhere());
            };
            let input = counted(content, metadata.size, self.bytes);
            match inspect(self.depth, stated, input, metadata.size, allowance) {
                Ok(Inspected { unpacked: Some(Err(UnpackError::Exceeded(more))), .. }) => {
                    allowance = more;
                }
                Ok(inspected) => break (metadata.size, inspected),
                Err(error) => {
                    let path = CachePath::NarInfo(info.store_path.hash());
                    findings.unreadable(&path, &ReadObjectError(error));
                    return Ok(Ok(NarInfoVerdict::Intact));
                }
            }
        };
        let file_hash = inspected.file_hash;
        if let Some(expected) = info.file_hash.filter(|stated| *stated != file_hash) {
            let (expected, actual) = (expected.to_string(), file_hash.to_string());
            return Ok(Err(NarInfoFault::OfNar { expected, actual }));
        }
        let contents = match NarContents::of(inspected.unpacked) {
            Ok(contents) => contents,
            Err(error) => {
                let (expected, actual) = ("a NAR".to_owned(), with_causes(&error));
                return Ok(Err(NarInfoFault::OfNar { expected, actual }));
            }
        };
        let facts = NarFacts { file_size, contents };
        if let Err(error) = check_against_nar(info, NarName { file_hash, extension }, facts) {
            return Ok(Err(error.into()));
        }
        let text = format!(
            "its NAR is at {key}, a name that is not served, so requests for the path get 404; \
             nix-stored migrate copies the NAR under the name that Nix gives it"
        );
        Ok(Ok(NarInfoVerdict::Noted(NoteKind::Layout, text)))
    }

    async fn examine_side_file(
        &self,
        path: &CachePath,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let Some(object) = self.open(path, findings).await? else {
            return Ok(());
        };
        if let CachePath::Log(_) = path {
            // A log can contain any bytes.
            return Ok(());
        }
        if let CachePath::DebugInfo(_) = path
            && !self.cache.has_linked_nar(&object).await.unwrap_or(true)
        {
            let text = "its NAR is missing, so it is not served".to_owned();
            findings.note(NoteKind::DebugInfo, path, text);
        }
        let etag = object.metadata.etag;
        let json = serde_json::from_reader::<_, IgnoredAny>(counted(
            object.content,
            object.metadata.size,
            self.bytes,
        ));
        match json {
            Ok(IgnoredAny) => {}
            Err(error) if error.is_io() => {
                findings.unreadable(path, &ReadObjectError(error.into()));
            }
            Err(error) => {
                let damage = damage(DamageKind::Json, path, "JSON", &error.to_string());
                findings.suspects.push(Suspect { damage, etag: Some(etag) });
            }
        }
        Ok(())
    }
}

fn damage(kind: DamageKind, object: &CachePath, expected: &str, actual: &str) -> Damage {
    Damage {
        kind,
        object: object.clone(),
        store_path: None,
        expected: expected.to_owned(),
        actual: actual.to_owned(),
        repaired: false,
    }
}

/// Judges a narinfo that does not parse. It is damage, unless some version of Nix may accept it,
/// and it names its own path and a NAR in the cache.
fn judge_leniently(
    hash: StorePathHash,
    text: &[u8],
    nar: Option<(NarName, &NarVerdict)>,
    error: ParseNarInfoError,
) -> Result<NarInfoVerdict, NarInfoFault> {
    let named = LenientNarInfo::read(text);
    use ParseNarInfoError as E;
    let may_be_accepted = match &error {
        E::Utf8 | E::Line { .. } | E::Twice(_) | E::Hash { .. } | E::Signature(_) => true,
        E::Unfinished | E::Missing(_) | E::Empty(_) | E::Size { .. } | E::StorePath { .. } => false,
    };
    let names_itself = named.store_path.is_some_and(|path| path.hash() == hash);
    let has_nar = match nar {
        Some((_, NarVerdict::Intact(_) | NarVerdict::Misnamed { .. } | NarVerdict::Unreadable)) => {
            true
        }
        Some((_, NarVerdict::Absent | NarVerdict::Damaged { .. })) | None => false,
    };
    if !may_be_accepted || !names_itself || !has_nar {
        return Err(PutError::from(error).into());
    }
    Ok(NarInfoVerdict::Noted(
        NoteKind::Unparsed,
        format!(
            "{error}; some versions of Nix may accept it, so it is served and kept, but was not \
             verified; upload the path again to replace it"
        ),
    ))
}

/// The result for a narinfo that is not damaged.
enum NarInfoVerdict {
    Intact,
    /// The NAR matches the narinfo, and only its name differs from the one that Nix gives it.
    IntactMisnamed,
    /// The NAR has a name that is not served. It has still to be compared.
    NarElsewhere(Box<NarInfo>),
    /// The narinfo is served, but the user should know the text.
    Noted(NoteKind, String),
}

/// A fault of a narinfo or of its NAR.
enum NarInfoFault {
    OfNarInfo(Box<PutError>),
    OfNar { expected: String, actual: String },
}

impl From<PutError> for NarInfoFault {
    fn from(error: PutError) -> Self {
        Self::OfNarInfo(Box::new(error))
    }
}

impl Findings {
    fn unreadable(&mut self, path: &CachePath, error: &dyn Error) {
        let damage = Damage::unreadable(path.clone(), error);
        self.suspects.push(Suspect { damage, etag: None });
    }

    fn note(&mut self, kind: NoteKind, path: &CachePath, text: String) {
        self.notes.push(Note { kind, object: path.key(), text });
    }
}

/// A failure to read an object after opening it.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the object")]
struct ReadObjectError(#[source] io::Error);

/// Creates a reader that adds the number of read bytes to `bytes`.
fn counted(content: Content, size: u64, bytes: &AtomicU64) -> impl BufRead + use<'_> {
    if let Content::File(file) = &content {
        background::read_once(file);
    }
    let count = |read: &[u8]| {
        bytes.fetch_add(read.len() as u64, Ordering::Relaxed);
    };
    InspectReader::new(object_reader(content, size), count)
}
