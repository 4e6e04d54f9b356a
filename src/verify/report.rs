//! The report of a verification.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::cache::PutError;
use crate::nix::CachePath;
use crate::store::StoreError;

/// The result of a verification.
#[derive(Debug, Default, Serialize)]
pub(crate) struct VerifyReport {
    /// The numbers of verified objects.
    pub checked: CheckedCounts,
    /// The damaged objects.
    pub damage: Vec<Damage>,
    /// The findings that are not damage.
    pub notes: Vec<Note>,
    /// The first error of quarantining an object, if any.
    #[serde(skip)]
    pub not_quarantined: Option<StoreError>,
}

/// The numbers of verified objects.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct CheckedCounts {
    /// The number of store paths, which is that of narinfos.
    pub paths: usize,
    /// The number of NARs.
    pub nars: usize,
    /// The number of listings, logs, realisations, build traces and links to debug symbols.
    pub side_files: usize,
    /// Bytes read from NARs and side files.
    pub bytes: u64,
}

/// A damaged object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Damage {
    /// The kind of damage.
    pub kind: DamageKind,
    /// The object.
    #[serde(serialize_with = "as_text")]
    pub object: CachePath,
    /// The store path that the object belongs to, or the first of several, if it is known.
    pub store_path: Option<String>,
    /// The expected value.
    pub expected: String,
    /// The actual value.
    pub actual: String,
    /// Whether the object was quarantined.
    pub repaired: bool,
}

/// The kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DamageKind {
    /// A narinfo that does not parse.
    Narinfo,
    /// A narinfo of another store path than its name.
    Name,
    /// A narinfo without a signature by a trusted key.
    Signature,
    /// A narinfo whose URL is not a name that Nix gives to NARs of this cache.
    Url,
    /// A narinfo whose NAR is missing.
    NarMissing,
    /// A narinfo whose NAR is damaged.
    NarDamaged,
    /// A narinfo with a field that does not match its NAR.
    Field,
    /// A NAR file whose hash does not match its name.
    Nar,
    /// A NAR file that does not unpack to a NAR.
    Unpack,
    /// A side file that is not JSON.
    Json,
    /// A directory or a special file.
    NoFile,
    /// An object that cannot be read. It may be intact.
    Unreadable,
}

/// A note: a finding that is not damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Note {
    /// The kind of the note.
    pub kind: NoteKind,
    /// The object or file.
    pub object: String,
    /// The text of the note.
    pub text: String,
}

/// The kind of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NoteKind {
    /// An absent store path that other paths refer to. A cache need not hold complete closures.
    Reference,
    /// A file that is not an object of the cache.
    Foreign,
    /// A NAR without a decoder. Only its file hash was verified.
    NoDecoder,
    /// An intact narinfo or NAR, where the NAR has another name than Nix gives it.
    Layout,
    /// A narinfo that does not parse, but that some version of Nix may accept.
    Unparsed,
    /// A mirrored narinfo with unverified signatures, because the upstream has no trusted keys.
    Unsigned,
    /// A link to debug symbols whose NAR is missing. It is not served.
    DebugInfo,
}

impl Damage {
    /// Whether the object is known to be damaged. An unreadable object may be intact.
    pub(crate) fn is_known(&self) -> bool {
        self.kind != DamageKind::Unreadable
    }

    /// Converts the error of checking a narinfo into damage.
    pub(crate) fn of_narinfo(
        object: CachePath,
        store_path: Option<String>,
        error: PutError,
    ) -> Self {
        use DamageKind as Kind;
        let (kind, expected, actual) = match error {
            PutError::HashPart { expected, actual } => {
                (Kind::Name, expected.to_string(), actual.to_string())
            }
            PutError::Signature { trusted, found } => {
                (Kind::Signature, format!("a signature by {trusted}"), or_none(found))
            }
            PutError::NarElsewhere(url) => (Kind::Url, "nar/<file hash>.nar…".to_owned(), url),
            PutError::NarMissing(nar) => (Kind::NarMissing, nar, "nothing".to_owned()),
            PutError::Field { field, stated, actual } => {
                (Kind::Field, format!("{field}: {actual}"), format!("{field}: {stated}"))
            }
            error => (Kind::Narinfo, "a narinfo".to_owned(), error.to_string()),
        };
        Self { kind, object, store_path, expected, actual, repaired: false }
    }

    /// Creates the damage of a directory or special file with the name of an object.
    pub(super) fn no_file(object: CachePath) -> Self {
        Self {
            kind: DamageKind::NoFile,
            object,
            store_path: None,
            expected: "a file".to_owned(),
            actual: "a directory or a special file".to_owned(),
            repaired: false,
        }
    }

    /// Creates the damage of an object that cannot be read.
    pub(crate) fn unreadable(object: CachePath, error: &dyn std::error::Error) -> Self {
        // The outermost error only names the operation and the object, which the report has
        // already.
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Self {
            kind: DamageKind::Unreadable,
            object,
            store_path: None,
            expected: "a readable file".to_owned(),
            actual: cause,
            repaired: false,
        }
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Narinfo => "is not a narinfo",
            Self::Name => "is the narinfo of another hash part",
            Self::Signature => "has no valid signature by a trusted key",
            Self::Url => "does not name a NAR of this cache",
            Self::NarMissing => "its NAR is missing",
            Self::NarDamaged => "its NAR is damaged",
            Self::Field => "does not match its NAR",
            Self::Nar => "does not match its name",
            Self::Unpack => "does not unpack to a NAR",
            Self::Json => "is not JSON",
            Self::NoFile => "is not a file, so no object can be stored under its name",
            Self::Unreadable => "cannot be read",
        })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(path) = &self.store_path {
            write!(f, " ({path})")?;
        }
        write!(f, ": {}: expected {}, found {}", self.kind, self.expected, self.actual)?;
        f.write_str(if self.repaired { "; quarantined" } else { "" })
    }
}

fn as_text<S: Serializer>(value: &CachePath, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}
