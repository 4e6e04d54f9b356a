//! Looking at a NAR with everything that names it, or at another object, as it is now.

use std::error::Error;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::report::{Damage, DamageKind, Note, NoteKind};
use crate::cache::nar::{Facts, Inspected, inspect, reader};
use crate::cache::narinfo::check_against_nar;
use crate::cache::unpack::UnpackError;
use crate::cache::{Cache, PutError};
use crate::config::Verify;
use crate::logging::with_causes;
use crate::nix::cache_path::NarName;
use crate::nix::{CachePath, NarInfo, StorePathHash};
use crate::store::{Content, Object, StoreError, background};

/// What is looked at in one go.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    /// A NAR and the narinfos that name it, so that it is read once.
    Nar(NarName, Vec<StorePathHash>),
    /// A narinfo that names no NAR, or cannot be read.
    NarInfo(StorePathHash),
    /// Another object.
    Side(CachePath),
}

/// What was found.
#[derive(Default)]
pub(super) struct Findings {
    /// What is false, in the order in which it is to be put aside.
    pub suspects: Vec<Suspect>,
    pub notes: Vec<Note>,
}

/// Something that is false.
pub(super) struct Suspect {
    pub damage: Damage,
    /// The entity tag of what was looked at; none where it could not be read, and so must stay.
    pub etag: Option<Bytes>,
}

/// A NAR as it is now.
enum Nar {
    Absent,
    Unreadable,
    Damaged { expected: String, actual: String },
    Right(Facts),
}

impl Cache {
    /// Looks at `subject` as it is now, and adds what it reads to `bytes`. To be called where
    /// waiting for the disk, and hashing, is in nobody's way.
    pub(super) async fn examine(
        &self,
        subject: &Subject,
        depth: Verify,
        bytes: &AtomicU64,
    ) -> Result<Findings, StoreError> {
        let mut findings = Findings::default();
        match subject {
            Subject::NarInfo(hash) => self.examine_narinfo(*hash, None, &mut findings).await?,
            Subject::Side(path) => self.examine_side_file(path, bytes, &mut findings).await?,
            Subject::Nar(name, narinfos) => {
                let mut of_nar = Findings::default();
                let nar = self.examine_nar(*name, depth, bytes, &mut of_nar).await?;
                for hash in narinfos {
                    self.examine_narinfo(*hash, Some((*name, &nar)), &mut findings).await?;
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

    /// An object; none if it is absent or cannot be read, and the latter is told.
    async fn open(
        &self,
        path: &CachePath,
        findings: &mut Findings,
    ) -> Result<Option<Object>, StoreError> {
        match self.store.get(path).await {
            Ok(object) => Ok(object),
            // Not the object's fault.
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
        depth: Verify,
        bytes: &AtomicU64,
        findings: &mut Findings,
    ) -> Result<Nar, StoreError> {
        let path = CachePath::Nar(name);
        let Some(object) = self.open(&path, findings).await? else {
            let absent = findings.suspects.is_empty();
            return Ok(if absent { Nar::Absent } else { Nar::Unreadable });
        };
        let file_size = object.metadata.size;
        let inspected =
            match inspect(depth, name, counted(object.content, object.metadata.size, bytes)) {
                Ok(inspected) => inspected,
                Err(error) => {
                    findings.unreadable(&path, &Reading(error));
                    return Ok(Nar::Unreadable);
                }
            };
        let (kind, expected, actual) = match inspected {
            Inspected { file_hash, .. } if file_hash != name.file_hash => {
                (DamageKind::Nar, name.file_hash.to_string(), file_hash.to_string())
            }
            Inspected { unpacked: Some(Err(UnpackError::NoDecoder(compression))), .. } => {
                findings.note(NoteKind::NoDecoder, &path, format!(
                    "it is compressed by {compression}, for which there is no decoder: its file \
                     hash is right, its contents were not compared"
                ));
                return Ok(Nar::Right(Facts { file_size, unpacked: None }));
            }
            Inspected { unpacked: Some(Err(error)), .. } => {
                (DamageKind::Unpack, "a NAR".to_owned(), with_causes(&error))
            }
            Inspected { unpacked, .. } => {
                let unpacked = unpacked.and_then(Result::ok);
                return Ok(Nar::Right(Facts { file_size, unpacked }));
            }
        };
        let damage = Damage {
            kind,
            object: path,
            store_path: None,
            expected: expected.clone(),
            actual: actual.clone(),
            repaired: false,
        };
        findings.suspects.push(Suspect { damage, etag: Some(object.metadata.etag) });
        Ok(Nar::Damaged { expected, actual })
    }

    /// Looks at a narinfo, with the NAR that it named when it was found.
    async fn examine_narinfo(
        &self,
        hash: StorePathHash,
        nar: Option<(NarName, &Nar)>,
        findings: &mut Findings,
    ) -> Result<(), StoreError> {
        let path = CachePath::NarInfo(hash);
        let Some(object) = self.open(&path, findings).await? else {
            return Ok(());
        };
        let (size, etag) = (object.metadata.size, object.metadata.etag);
        let mut text = Vec::new();
        if let Err(error) = reader(object.content, size).read_to_end(&mut text) {
            findings.unreadable(&path, &Reading(error));
            return Ok(());
        }
        let mut store_path = None;
        let damage = match self.judge(hash, &text, nar, &mut store_path) {
            Ok(()) => return Ok(()),
            Err(Fault::OfNarInfo(error)) => Damage::of_narinfo(path, store_path, *error),
            Err(Fault::OfNar { expected, actual }) => Damage {
                kind: DamageKind::NarDamaged,
                object: path,
                store_path,
                expected,
                actual,
                repaired: false,
            },
        };
        findings.suspects.push(Suspect { damage, etag: Some(etag) });
        Ok(())
    }

    /// Whether a narinfo is true. Where it could be parsed, `store_path` becomes its own.
    fn judge(
        &self,
        hash: StorePathHash,
        text: &[u8],
        nar: Option<(NarName, &Nar)>,
        store_path: &mut Option<String>,
    ) -> Result<(), Fault> {
        let info = NarInfo::parse(text, &self.info.store_dir).map_err(PutError::from)?;
        *store_path = Some(self.info.store_dir.join(&info.store_path));
        let actual = info.store_path.hash();
        if actual != hash {
            return Err(PutError::HashPart { expected: hash, actual }.into());
        }
        if info.upstream().is_none() {
            // What was mirrored was checked with the keys of its upstream then.
            self.check_signatures(&info)?;
        }
        let url = || info.url.clone();
        let name = info.nar_name().ok_or_else(|| PutError::NarElsewhere(url()))?;
        match nar {
            Some((looked_at, nar)) if looked_at == name => match nar {
                Nar::Absent => Err(PutError::NarMissing(url()).into()),
                // That of the NAR is told.
                Nar::Unreadable => Ok(()),
                Nar::Damaged { expected, actual } => {
                    Err(Fault::OfNar { expected: expected.clone(), actual: actual.clone() })
                }
                Nar::Right(facts) => Ok(check_against_nar(&info, name, *facts)?),
            },
            // It has been replaced since it was found, by one that was checked then.
            _ => Ok(()),
        }
    }

    async fn examine_side_file(
        &self,
        path: &CachePath,
        bytes: &AtomicU64,
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
            && !self.debug_info_has_its_nar(&object).await.unwrap_or(true)
        {
            let text = "the NAR that it names is not here, so it is not served".to_owned();
            findings.note(NoteKind::DebugInfo, path, text);
        }
        let etag = object.metadata.etag;
        let json = serde_json::from_reader::<_, IgnoredAny>(counted(
            object.content,
            object.metadata.size,
            bytes,
        ));
        match json {
            Ok(IgnoredAny) => {}
            Err(error) if error.is_io() => findings.unreadable(path, &Reading(error.into())),
            Err(error) => {
                let damage = Damage {
                    kind: DamageKind::Json,
                    object: path.clone(),
                    store_path: None,
                    expected: "JSON".to_owned(),
                    actual: error.to_string(),
                    repaired: false,
                };
                findings.suspects.push(Suspect { damage, etag: Some(etag) });
            }
        }
        Ok(())
    }
}

/// Why a narinfo is false: because of itself or of its NAR.
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

/// An object could be opened, and not read.
#[derive(Debug, thiserror::Error)]
#[error("reading")]
struct Reading(#[source] io::Error);

/// A reader that adds what was read to `bytes`.
fn counted(content: Content, size: u64, bytes: &AtomicU64) -> impl BufRead {
    if let Content::File(file) = &content {
        background::read_once(file);
    }
    Counted { inner: reader(content, size), bytes }
}

struct Counted<'a, R> {
    inner: R,
    bytes: &'a AtomicU64,
}

impl<R: BufRead> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        self.inner.consume(count);
    }
}
