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

/// The objects that are examined together.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// A NAR and the narinfos that name it, so that it is read once.
    Nar(NarName, Vec<StorePathHash>),
    /// A narinfo that names no NAR, or cannot be read.
    NarInfo(StorePathHash),
    /// Another object.
    Side(CachePath),
}

/// The findings about a subject.
#[derive(Default)]
pub(super) struct Findings {
    /// The suspects, in the order in which they are to be quarantined.
    pub suspects: Vec<Suspect>,
    pub notes: Vec<Note>,
}

/// A suspected damage.
pub(super) struct Suspect {
    pub damage: Damage,
    /// The entity tag of the examined object, or `None` if it could not be read, and so must be
    /// kept.
    pub etag: Option<Bytes>,
}

/// The result of examining a NAR.
enum Nar {
    Absent,
    Unreadable,
    Damaged {
        expected: String,
        actual: String,
    },
    /// The hash differs from the name. That is damage, unless a narinfo states this hash: other
    /// programs name NARs differently.
    Misnamed {
        file_hash: Sha256Hash,
        facts: NarFacts,
    },
    Right(NarFacts),
}

/// Examines objects of a cache.
pub(super) struct Examiner<'a> {
    pub cache: &'a Cache,
    /// Whether NARs are unpacked.
    pub depth: Verify,
    /// The number of bytes that have been read.
    pub bytes: &'a AtomicU64,
}

impl Examiner<'_> {
    /// Examines `subject`. Must be called on a background thread, because it hashes and blocks on the
    /// disk.
    pub(super) async fn examine(&self, subject: &Subject) -> Result<Findings, StoreError> {
        let mut findings = Findings::default();
        match subject {
            Subject::NarInfo(hash) => {
                self.examine_narinfo(*hash, None, &mut findings).await?;
            }
            Subject::Side(path) => self.examine_side_file(path, &mut findings).await?,
            Subject::Nar(name, narinfos) => {
                let mut of_nar = Findings::default();
                let nar = self.examine_nar(*name, &mut of_nar).await?;
                let mut right_by_narinfo = false;
                for hash in narinfos {
                    let nar = Some((*name, &nar));
                    right_by_narinfo |= self.examine_narinfo(*hash, nar, &mut findings).await?;
                }
                if let (true, Nar::Misnamed { file_hash, .. }) = (right_by_narinfo, &nar) {
                    of_nar.suspects.clear();
                    let text = format!(
                        "its file hash {file_hash} is the one in its narinfo, but its name is not \
                         the one that Nix gives it; nix-stored migrate copies it under that name"
                    );
                    of_nar.note(NoteKind::Layout, &CachePath::Nar(*name), text);
                }
                let of_path = findings.suspects.first();
                let of_path = of_path.and_then(|suspect| suspect.damage.store_path.clone());
                for mut suspect in of_nar.suspects {
                    suspect.damage.store_path.clone_from(&of_path);
                    findings.suspects.push(suspect);
                }
                findings.notes.extend(of_nar.notes);
            }
        }
        Ok(findings)
    }

    /// Opens an object. Returns `None` if it is absent, or if it cannot be read, which is reported.
    async fn open(
        &self,
        path: &CachePath,
        findings: &mut Findings,
    ) -> Result<Option<Object>, StoreError> {
        match self.cache.store().get(path).await {
            Ok(object) => Ok(object),
            // Not the object's fault.
            Err(error @ StoreError::Busy { .. }) => Err(error),
            Err(error) => {
                findings.unreadable(path, &error);
                Ok(None)
            }
        }
    }

    async fn examine_nar(&self, name: NarName, findings: &mut Findings) -> Result<Nar, StoreError> {
        let path = CachePath::Nar(name);
        let mut allowance = Allowance::USUAL;
        let (metadata, inspected) = loop {
            let _permit = self.cache.decoders().at_rest(allowance).await;
            let Some(Object { metadata, content }) = self.open(&path, findings).await? else {
                let absent = findings.suspects.is_empty();
                return Ok(if absent { Nar::Absent } else { Nar::Unreadable });
            };
            let input = counted(content, metadata.size, self.bytes);
            match inspect(self.depth, name, input, metadata.size, allowance) {
                Ok(Inspected { unpacked: Some(Err(UnpackError::Exceeded(more))), .. }) => {
                    allowance = more;
                }
                Ok(inspected) => break (metadata, inspected),
                Err(error) => {
                    findings.unreadable(&path, &Reading(error));
                    return Ok(Nar::Unreadable);
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
                return Ok(Nar::Damaged { expected, actual });
            }
        };
        if let NarContents::NoDecoder(compression) = contents {
            let text =
                format!("there is no decoder for {compression}: only its file hash was verified");
            findings.note(NoteKind::NoDecoder, &path, text);
        }
        let facts = NarFacts { file_size, contents };
        if file_hash == name.file_hash {
            return Ok(Nar::Right(facts));
        }
        let (expected, actual) = (name.file_hash.to_string(), file_hash.to_string());
        let damage = damage(DamageKind::Nar, &path, &expected, &actual);
        findings.suspects.push(Suspect { damage, etag: Some(metadata.etag) });
        Ok(Nar::Misnamed { file_hash, facts })
    }

    /// Examines a narinfo, with the NAR that it named when it was found. Returns whether that NAR is
    /// what the narinfo states, under another name than Nix's.
    async fn examine_narinfo(
        &self,
        hash: StorePathHash,
        nar: Option<(NarName, &Nar)>,
        findings: &mut Findings,
    ) -> Result<bool, StoreError> {
        let path = CachePath::NarInfo(hash);
        let Some(object) = self.open(&path, findings).await? else {
            return Ok(false);
        };
        let (size, etag) = (object.metadata.size, object.metadata.etag);
        if size > narinfo::MAX_SIZE {
            let why = format!("it has {size} bytes; the limit is {}", narinfo::MAX_SIZE);
            findings.unreadable(&path, &Reading(io::Error::other(why)));
            return Ok(false);
        }
        let mut text = Vec::new();
        if let Err(error) = object_reader(object.content, size).read_to_end(&mut text) {
            findings.unreadable(&path, &Reading(error));
            return Ok(false);
        }
        let mut store_path = None;
        let judged = match self.judge(hash, &text, nar, &mut store_path) {
            Ok(Judged::NarElsewhere(info)) => self.judge_nar_elsewhere(&info, findings).await?,
            judged => judged,
        };
        let damage = match judged {
            Ok(Judged::NarElsewhere(_)) => return Ok(false),
            Ok(Judged::Right) => return Ok(false),
            Ok(Judged::RightByAnotherName) => return Ok(true),
            Ok(Judged::Noted(kind, text)) => {
                findings.note(kind, &path, text);
                return Ok(false);
            }
            Err(Fault::OfNarInfo(error)) => Damage::of_narinfo(path, store_path, *error),
            Err(Fault::OfNar { expected, actual }) => {
                Damage { store_path, ..damage(DamageKind::NarDamaged, &path, &expected, &actual) }
            }
        };
        findings.suspects.push(Suspect { damage, etag: Some(etag) });
        Ok(false)
    }

    /// Whether a narinfo is true. Where it could be parsed, `store_path` becomes its own.
    fn judge(
        &self,
        hash: StorePathHash,
        text: &[u8],
        nar: Option<(NarName, &Nar)>,
        store_path: &mut Option<String>,
    ) -> Result<Judged, Fault> {
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
            return Ok(Judged::NarElsewhere(Box::new(info)));
        };
        match nar {
            Some((examined, nar)) if examined == name => match nar {
                Nar::Absent => return Err(PutError::NarMissing(info.url).into()),
                // The NAR itself is reported.
                Nar::Unreadable => {}
                Nar::Damaged { expected, actual } => {
                    return Err(Fault::OfNar {
                        expected: expected.clone(),
                        actual: actual.clone(),
                    });
                }
                Nar::Misnamed { file_hash, facts } => {
                    let actual_name = NarName { file_hash: *file_hash, ..name };
                    let stated = info.file_hash.unwrap_or(*file_hash);
                    if stated != *file_hash {
                        return Err(Fault::OfNar {
                            expected: name.file_hash.to_string(),
                            actual: file_hash.to_string(),
                        });
                    }
                    check_against_nar(&info, actual_name, *facts)?;
                    return Ok(Judged::RightByAnotherName);
                }
                Nar::Right(facts) => check_against_nar(&info, name, *facts)?,
            },
            // It has been replaced since it was found, by one that was checked then.
            _ => {}
        }
        if self.cache.signatures().is_mirrored_without_keys(&info)
            && !self.cache.admission().trusted_public_keys.is_empty()
        {
            let text = "mirrored from an upstream without trusted-public-keys, so its signatures \
                        were not verified";
            return Ok(Judged::Noted(NoteKind::Unsigned, text.to_owned()));
        }
        Ok(Judged::Right)
    }

    /// Judges a narinfo by a NAR that has a name which is not served here.
    async fn judge_nar_elsewhere(
        &self,
        info: &NarInfo,
        findings: &mut Findings,
    ) -> Result<Result<Judged, Fault>, StoreError> {
        let elsewhere = || Err(PutError::NarElsewhere(info.url.clone()).into());
        let (Some(key), Ok(compression)) =
            (foreign_key(&info.url), info.compression.parse::<Compression>())
        else {
            return Ok(elsewhere());
        };
        let extension = compression.extension();
        let stated = NarName { file_hash: info.file_hash.unwrap_or(info.nar_hash), extension };
        let mut allowance = Allowance::USUAL;
        let (file_size, inspected) = loop {
            let _permit = self.cache.decoders().at_rest(allowance).await;
            let Some(Object { metadata, content }) = self.cache.store().get_foreign(&key).await?
            else {
                return Ok(elsewhere());
            };
            let input = counted(content, metadata.size, self.bytes);
            match inspect(self.depth, stated, input, metadata.size, allowance) {
                Ok(Inspected { unpacked: Some(Err(UnpackError::Exceeded(more))), .. }) => {
                    allowance = more;
                }
                Ok(inspected) => break (metadata.size, inspected),
                Err(error) => {
                    let path = CachePath::NarInfo(info.store_path.hash());
                    findings.unreadable(&path, &Reading(error));
                    return Ok(Ok(Judged::Right));
                }
            }
        };
        let file_hash = inspected.file_hash;
        if let Some(expected) = info.file_hash.filter(|stated| *stated != file_hash) {
            let (expected, actual) = (expected.to_string(), file_hash.to_string());
            return Ok(Err(Fault::OfNar { expected, actual }));
        }
        let contents = match NarContents::of(inspected.unpacked) {
            Ok(contents) => contents,
            Err(error) => {
                let (expected, actual) = ("a NAR".to_owned(), with_causes(&error));
                return Ok(Err(Fault::OfNar { expected, actual }));
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
        Ok(Ok(Judged::Noted(NoteKind::Layout, text)))
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
            // Any text is a log.
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
            Err(error) if error.is_io() => findings.unreadable(path, &Reading(error.into())),
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

/// Judges a narinfo that does not parse. Where its fault is one that some version of Nix does not see,
/// and it names its own path and a NAR that is here, it is not damage.
fn judge_leniently(
    hash: StorePathHash,
    text: &[u8],
    nar: Option<(NarName, &Nar)>,
    error: ParseNarInfoError,
) -> Result<Judged, Fault> {
    let named = LenientNarInfo::read(text);
    use ParseNarInfoError as E;
    let may_be_accepted = match &error {
        E::Utf8 | E::Line { .. } | E::Twice(_) | E::Hash { .. } | E::Signature(_) => true,
        E::Unfinished | E::Missing(_) | E::Empty(_) | E::Size { .. } | E::StorePath { .. } => false,
    };
    let names_itself = named.store_path.is_some_and(|path| path.hash() == hash);
    let nar_is_here = match nar {
        Some((_, Nar::Right(_) | Nar::Misnamed { .. } | Nar::Unreadable)) => true,
        Some((_, Nar::Absent | Nar::Damaged { .. })) | None => false,
    };
    if !may_be_accepted || !names_itself || !nar_is_here {
        return Err(PutError::from(error).into());
    }
    Ok(Judged::Noted(
        NoteKind::Unparsed,
        format!(
            "{error}; some versions of Nix may accept it, so it is served and kept, but was not \
             verified; upload the path again to replace it"
        ),
    ))
}

/// The result for an intact narinfo.
enum Judged {
    Right,
    /// Its NAR is what it states, and has another name than Nix gives it.
    RightByAnotherName,
    /// Its NAR has a name that is not served here.
    NarElsewhere(Box<NarInfo>),
    /// It is used, and there is something to know about it.
    Noted(NoteKind, String),
}

/// The fault of a narinfo: its own or that of its NAR.
enum Fault {
    OfNarInfo(Box<PutError>),
    OfNar { expected: String, actual: String },
}

impl From<PutError> for Fault {
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

/// An object that can be opened, but not read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the object")]
struct Reading(#[source] io::Error);

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
