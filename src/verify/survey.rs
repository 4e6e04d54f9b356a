//! Lists the objects that a verification has to examine.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use futures_util::StreamExt;

use super::examine::Subject;
use super::report::{CheckedCounts, Damage, Note, NoteKind};
use crate::cache::Cache;
use crate::nix::cache_path::NarName;
use crate::nix::narinfo::ParseNarInfoError;
use crate::nix::store_path::ParseStorePathError;
use crate::nix::{CachePath, LenientNarInfo, NarInfo, StoreDir, StorePath, StorePathHash};
use crate::store::{Listed, ListedObject, StoreError};

/// The objects of a cache that have to be examined.
#[derive(Default)]
pub(super) struct Survey {
    pub checked: CheckedCounts,
    /// NARs that are stored or named by a narinfo, with their narinfos.
    nars: BTreeMap<NarName, Vec<StorePathHash>>,
    /// All other objects.
    others: Vec<Subject>,
    /// The number of bytes that the examination will read.
    pub bytes: u64,
    narinfos: HashSet<StorePathHash>,
    /// The referenced store paths, each with the number of its referrers and the first of them.
    references: HashMap<StorePath, (usize, StorePathHash)>,
    /// Narinfos that were listed, but cannot be read.
    unreadable: Vec<Damage>,
    notes: Vec<Note>,
    /// Names of objects that are not files.
    non_files: Vec<(CachePath, Bytes)>,
    /// The number of narinfos that parse.
    parsed: usize,
    /// The first error about a path in another store directory.
    other_store_dir: Option<ParseStorePathError>,
}

impl Survey {
    /// Lists all objects of a cache. `on_progress` receives the number of objects so far.
    pub(super) async fn of(
        cache: &Cache,
        mut on_progress: impl FnMut(u64),
    ) -> Result<Self, StoreError> {
        let mut survey = Self::default();
        let mut objects = cache.store().list(|path| matches!(path, CachePath::NarInfo(_)));
        let mut count = 0;
        while let Some(listed) = objects.next().await {
            match listed? {
                Listed::Object(object) => {
                    survey.count(&object.path);
                    survey.add_object(object, &cache.info().store_dir);
                }
                Listed::Unreadable(path, error) => {
                    survey.count(&path);
                    match path {
                        // The name of its NAR is unknown, so there is nothing to examine.
                        CachePath::NarInfo(_) => {
                            survey.unreadable.push(Damage::unreadable(path, &error));
                        }
                        path => survey.add(path),
                    }
                }
                Listed::NoFile(path, etag) => {
                    survey.count(&path);
                    survey.non_files.push((path, etag));
                }
                Listed::Foreign(name) => survey.notes.push(Note {
                    kind: NoteKind::Foreign,
                    object: name,
                    text: "not the name of a cache object; ignored".to_owned(),
                }),
            }
            count += 1;
            on_progress(count);
        }
        Ok(survey)
    }

    fn add_object(&mut self, object: ListedObject, store_dir: &StoreDir) {
        let ListedObject { path, metadata, content } = object;
        let CachePath::NarInfo(hash) = path else {
            if !matches!(path, CachePath::Log(_)) {
                self.bytes += metadata.size;
            }
            self.add(path);
            return;
        };
        self.narinfos.insert(hash);
        let content = content.unwrap_or_default();
        let info = match NarInfo::parse(&content, store_dir) {
            Ok(info) => info,
            Err(error) => {
                if let ParseNarInfoError::StorePath { field: "StorePath", source } = error
                    && matches!(source, ParseStorePathError::StoreDir { .. })
                {
                    self.other_store_dir.get_or_insert(source);
                }
                self.add_unparsed_narinfo(hash, &content);
                return;
            }
        };
        self.parsed += 1;
        match info.fetched_nar() {
            Some(name) => self.nars.entry(name).or_default().push(hash),
            None => self.add(path),
        }
        for reference in info.references {
            self.references.entry(reference).or_insert((0, hash)).0 += 1;
        }
    }

    pub(super) fn take_unreadable(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.unreadable)
    }

    /// Returns an error if all narinfos seem to be for another store directory: then the
    /// configuration is wrong, and not the narinfos.
    pub(super) fn take_other_store_dir(&mut self) -> Option<ParseStorePathError> {
        self.other_store_dir.take().filter(|_| self.parsed == 0)
    }

    /// Returns the names of objects that are not files, with their entity tags.
    pub(super) fn take_non_files(&mut self) -> Vec<(CachePath, Bytes)> {
        std::mem::take(&mut self.non_files)
    }

    fn count(&mut self, path: &CachePath) {
        match path {
            CachePath::NarInfo(_) => self.checked.paths += 1,
            CachePath::Nar(_) => self.checked.nars += 1,
            _ => self.checked.side_files += 1,
        }
    }

    /// Adds a narinfo that does not parse. It is examined with the NAR that it names, if any.
    fn add_unparsed_narinfo(&mut self, hash: StorePathHash, text: &[u8]) {
        let named = LenientNarInfo::read(text);
        match named.nars.last() {
            Some(name) => self.nars.entry(*name).or_default().push(hash),
            None => self.others.push(Subject::NarInfo(hash)),
        }
        for name in named.nars {
            self.nars.entry(name).or_default();
        }
    }

    fn add(&mut self, path: CachePath) {
        match path {
            CachePath::Nar(name) => {
                self.nars.entry(name).or_default();
            }
            CachePath::NarInfo(hash) => self.others.push(Subject::NarInfo(hash)),
            path => self.others.push(Subject::Side(path)),
        }
    }

    /// Removes and returns the narinfos that name a NAR.
    pub(super) fn take_narinfos_naming(&mut self, name: &NarName) -> Vec<StorePathHash> {
        self.nars.remove(name).unwrap_or_default()
    }

    /// Returns the subjects to examine, and the notes so far.
    pub(super) fn finish(self, store_dir: &StoreDir) -> (Vec<Subject>, Vec<Note>) {
        let nars = self.nars.into_iter().map(|(name, narinfos)| Subject::Nar(name, narinfos));
        let subjects = nars.chain(self.others).collect();
        let mut notes = self.notes;
        let absent = self.references.into_iter();
        let absent = absent.filter(|(path, _)| !self.narinfos.contains(&path.hash()));
        notes.extend(absent.map(|(path, (count, first))| Note {
            kind: NoteKind::Reference,
            object: store_dir.join(&path),
            text: match count {
                1 => format!("not in this cache, and {first} refers to it"),
                _ => format!("not in this cache, and {count} paths refer to it, such as {first}"),
            },
        }));
        notes.sort_by(|one, other| one.object.cmp(&other.object));
        (subjects, notes)
    }
}
