//! The report of a verification.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::cache::PutError;
use crate::nix::CachePath;
use crate::store::StoreError;

/// The result of a verification.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The numbers of verified objects.
    pub checked: Checked,
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
pub struct Checked {
    /// Narinfos, each of one store path.
    pub paths: usize,
    /// NARs.
    pub nars: usize,
    /// Listings, logs, realisations, build traces and links to debug symbols.
    pub side_files: usize,
    /// Bytes in NARs and side files that were read.
    pub bytes: u64,
}

/// A damaged object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The kind of damage.
    pub kind: DamageKind,
    /// The object.
    #[serde(serialize_with = "as_text")]
    pub object: CachePath,
    /// The store path that it belongs to, or the first of several, where that is known.
    pub store_path: Option<String>,
    /// What would be right.
    pub expected: String,
    /// The actual value.
    pub actual: String,
    /// Whether the object was quarantined.
    pub repaired: bool,
}

/// The kind of a damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DamageKind {
    /// A narinfo that does not parse.
    Narinfo,
    /// A narinfo of another store path than its name.
    Name,
    /// A narinfo without a signature by a trusted key.
    Signature,
    /// A narinfo whose NAR is not in this cache by Nix's naming.
    Url,
    /// A narinfo whose NAR is not here.
    NarMissing,
    /// A narinfo whose NAR is here and is damaged.
    NarDamaged,
    /// A narinfo that states something that is not true of its NAR.
    Field,
    /// A NAR that does not match its name.
    Nar,
    /// A NAR that does not unpack to one.
    Unpack,
    /// A side file that is not JSON.
    Json,
    /// A directory, or something else that is no file.
    NoFile,
    /// An object that cannot be read, and may be intact.
    Unreadable,
}

/// A note: a finding that is not damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What it is about.
    pub kind: NoteKind,
    /// The object or file.
    pub object: String,
    /// What there is to know.
    pub text: String,
}

/// The kind of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// A store path that is not here is referred to: a cache may hold less than a closure.
    Reference,
    /// A file that is not an object of the cache.
    Foreign,
    /// A NAR without a decoder for it: its contents were not compared.
    NoDecoder,
    /// A narinfo or NAR that is right, and is not named as Nix names it.
    Layout,
    /// A narinfo that does not parse, and that some version of Nix may accept.
    Unparsed,
    /// A mirrored narinfo whose signatures could not be checked, for want of the upstream's keys.
    Unsigned,
    /// A link to debug symbols whose NAR is not here; it is not served.
    DebugInfo,
}

impl Damage {
    /// Whether it is known to be damage, and is not only something that could not be read.
    pub fn is_known(&self) -> bool {
        self.kind != DamageKind::Unreadable
    }

    /// Converts the refusal of a narinfo into damage.
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

    /// Something that has the name of an object and is no file.
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

    /// An object that cannot be read.
    pub(crate) fn unreadable(object: CachePath, error: &dyn std::error::Error) -> Self {
        // The outermost error names the operation and the object, which the report names anyway.
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
