//! The contents of a cache as a graph: paths, their references, and the objects that belong to
//! them.

use std::collections::HashMap;
use std::time::SystemTime;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::warn;

use crate::cache::Cache;
use crate::nix::{CachePath, LenientNarInfo, NarInfo, StoreDir, StorePath, StorePathHash};
use crate::store::{Listed, ListedObject, StoreError, background};

/// The contents of a cache.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The store paths, which have narinfos.
    pub paths: Vec<HeldPath>,
    /// NARs, and logs of paths that are here: what can belong to several paths.
    pub shared: Vec<HeldObject>,
    /// Objects that belong to no path here.
    pub loose: Vec<HeldObject>,
    /// The places of NARs that a narinfo names besides its own: with two `URL` lines, versions of Nix
    /// may differ about the one that they fetch.
    pub claimed: Vec<u32>,
    /// Narinfos that do not parse.
    pub unparsed: Unparsed,
    /// Narinfos that could not be read, and so may need anything.
    pub unreadable: Vec<(CachePath, StoreError)>,
    places: HashMap<StorePathHash, u32>,
}

/// Numbers of narinfos that do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Unparsed {
    /// Those that name a NAR or references all the same. They are paths like any other, because some
    /// version of Nix may accept them.
    pub lenient: usize,
    /// Those that name nothing.
    pub garbage: usize,
}

/// A store path.
#[derive(Debug, Clone)]
pub struct HeldPath {
    /// Its name; one whose narinfo does not give a right one is called `unparsed-narinfo`.
    pub store_path: StorePath,
    /// The place of its NAR among the shared objects.
    pub nar: Option<u32>,
    /// The place of its log among the shared objects.
    pub log: Option<u32>,
    /// The indices of its references, without itself and absent paths.
    pub references: Box<[u32]>,
    /// Objects that go with its narinfo.
    pub sides: Vec<CachePath>,
    /// Bytes in the narinfo and the objects that go with it.
    pub size: u64,
    /// The length of the NAR when it is unpacked, in bytes.
    pub nar_size: u64,
    /// Whether it was mirrored from an upstream, and not uploaded since.
    pub mirrored: bool,
    /// When its narinfo was written.
    pub uploaded: SystemTime,
    /// The last use of its narinfo or of an object that belongs to it.
    pub used: SystemTime,
}

/// An object that is not a narinfo.
#[derive(Debug, Clone)]
pub struct HeldObject {
    /// Its name.
    pub path: CachePath,
    /// Objects that go with it.
    pub sides: Vec<CachePath>,
    /// The bytes of the object and of the objects that belong to it.
    pub size: u64,
    /// The last use of the object or of an object that belongs to it.
    pub used: SystemTime,
}

/// A failed inventory. Without an inventory nothing may be removed, because an unreadable narinfo
/// may reference any object.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The store failed.
    #[error("cannot list the cache, so nothing was removed")]
    Store(#[from] StoreError),
    /// An unreadable narinfo, which may reference any object.
    #[error(
        "cannot read {path}{}; any object may be referenced by it, so nothing was removed; \
         repair the disk, or move the file out of the cache",
        and_others(*others)
    )]
    Unreadable {
        /// The first unreadable narinfo.
        path: CachePath,
        /// The number of others.
        others: usize,
        /// The error.
        source: Box<StoreError>,
    },
    /// No narinfo is for the configured store directory, so every NAR would look unreferenced.
    #[error(
        "no narinfo in the cache is for the store directory {0}, so nothing was removed; set \
         NIX_STORED_STORE_DIR to the store directory of the cache"
    )]
    OtherStoreDir(StoreDir),
}

fn and_others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " and 1 other narinfo".to_owned(),
        _ => format!(" and {count} other narinfos"),
    }
}

/// The name of a path whose narinfo does not give a right one.
const UNPARSED: &str = "unparsed-narinfo";

/// A parsed narinfo, before its references are resolved.
struct Read {
    held: HeldPath,
    nar: Option<CachePath>,
    deriver: Option<StorePath>,
    references: Box<[StorePathHash]>,
}

/// Side files that name the path or NAR that they belong to.
struct Linked {
    object: HeldObject,
    to: Option<CachePath>,
}

/// Reads the listed objects one by one.
#[derive(Default)]
struct Reading {
    paths: Vec<Read>,
    nars: HashMap<CachePath, u32>,
    logs: HashMap<StorePath, HeldObject>,
    linked: Vec<Linked>,
    /// NARs that narinfos name besides their own.
    claims: Vec<CachePath>,
    /// The number of narinfos that parse, and of those that are for another store dir.
    parsed: usize,
    other_store_dir: usize,
    inventory: Inventory,
}

impl Cache {
    /// Reads the contents of the cache; `progress` gets the number of objects so far.
    pub async fn inventory(
        &self,
        mut progress: impl FnMut(u64),
    ) -> Result<Inventory, InventoryError> {
        let (count, mut counted) = watch::channel(0);
        let objects = self.store.list(Self::is_read);
        let (store_dir, runtime) = (self.info.store_dir.clone(), Handle::current());
        // Parsing is not for a thread that serves: it takes seconds, where there are many paths.
        let read = move || runtime.block_on(read(objects, &store_dir, &count));
        let read = background::run("inventory", read);
        tokio::pin!(read);
        loop {
            tokio::select! {
                biased;
                Ok(()) = counted.changed() => progress(*counted.borrow_and_update()),
                inventory = &mut read => {
                    let inventory = inventory??;
                    inventory.report();
                    return Ok(inventory);
                }
            }
        }
    }

    /// Whether an object names the objects that it belongs to.
    fn is_read(path: &CachePath) -> bool {
        matches!(
            path,
            CachePath::NarInfo(_)
                | CachePath::Realisation { .. }
                | CachePath::BuildTrace { .. }
                | CachePath::DebugInfo(_)
        )
    }
}

/// How many objects there are between two words about it.
const TELL_EVERY: u64 = 1000;

/// Reads all objects. Ends early if the receiver is dropped.
async fn read(
    mut objects: BoxStream<'static, Result<Listed, StoreError>>,
    store_dir: &StoreDir,
    counted: &watch::Sender<u64>,
) -> Result<Inventory, InventoryError> {
    let mut reading = Reading::default();
    let mut count = 0;
    while let Some(object) = objects.next().await {
        match object? {
            Listed::Object(object) => reading.take(object, store_dir),
            Listed::Unreadable(path @ CachePath::NarInfo(_), error) => {
                reading.inventory.unreadable.push((path, error));
            }
            // Only objects in the inventory are removed.
            Listed::Unreadable(path, error) => {
                let error = &error as &dyn std::error::Error;
                warn!(%path, error, "cannot read an object; it is kept");
            }
            Listed::Foreign(_) => continue,
            Listed::NoFile(path, _) => {
                warn!(%path, "not a file; run nix-stored verify");
                continue;
            }
        }
        count += 1;
        if count % TELL_EVERY == 0 && counted.send(count).is_err() {
            break;
        }
    }
    // The receiver may have been dropped.
    let _ = counted.send(count);
    if reading.parsed == 0 && reading.other_store_dir > 0 {
        return Err(InventoryError::OtherStoreDir(store_dir.clone()));
    }
    Ok(reading.finish())
}

impl Inventory {
    /// The inventory of a cache that holds this.
    pub fn new(paths: Vec<HeldPath>, shared: Vec<HeldObject>, loose: Vec<HeldObject>) -> Self {
        let places = places(paths.iter().map(|path| &path.store_path));
        Self { paths, shared, loose, places, ..Self::default() }
    }

    /// The inventory, if it is known of every narinfo what it needs. Nothing may be removed otherwise.
    pub fn complete(mut self) -> Result<Self, InventoryError> {
        if self.unreadable.is_empty() {
            return Ok(self);
        }
        let (path, source) = self.unreadable.swap_remove(0);
        let others = self.unreadable.len();
        Err(InventoryError::Unreadable { path, others, source: Box::new(source) })
    }

    /// Logs the errors of narinfos, once for all of them.
    fn report(&self) {
        let Unparsed { lenient, garbage } = self.unparsed;
        if lenient + garbage > 0 {
            warn!(
                lenient,
                garbage,
                "some narinfos do not parse; their NARs and references are kept; run nix-stored \
                 verify"
            );
        }
        if let Some((path, error)) = self.unreadable.first() {
            let count = self.unreadable.len();
            let error = error as &dyn std::error::Error;
            warn!(%path, count, error, "some narinfos cannot be read; collections remove nothing");
        }
    }

    /// The place of the path with this hash part.
    pub fn find(&self, hash: StorePathHash) -> Option<usize> {
        self.places.get(&hash).map(|&place| place as usize)
    }

    /// When a path was used last: its narinfo, its NAR, or anything else that would go with them.
    pub fn used(&self, path: usize) -> SystemTime {
        let shared = self.shared_by(path).map(|object| self.shared[object].used);
        shared.fold(self.paths[path].used, SystemTime::max)
    }

    /// Bytes in all objects.
    pub fn size(&self) -> u64 {
        let paths = self.paths.iter().map(|path| path.size);
        let others = self.shared.iter().chain(&self.loose).map(|object| object.size);
        paths.chain(others).sum()
    }

    /// The shared objects that belong to a path.
    pub fn shared_by(&self, path: usize) -> impl Iterator<Item = usize> + use<> {
        let HeldPath { nar, log, .. } = self.paths[path];
        nar.into_iter().chain(log).map(|place| place as usize)
    }
}

impl Reading {
    fn take(&mut self, listed: ListedObject, store_dir: &StoreDir) {
        let ListedObject { path, metadata, content } = listed;
        let object =
            HeldObject { path, sides: Vec::new(), size: metadata.size, used: metadata.used };
        match &object.path {
            CachePath::NarInfo(hash) => {
                let (hash, text) = (*hash, content.unwrap_or_default());
                match NarInfo::parse(&text, store_dir) {
                    Ok(info) if info.store_path.hash() == hash => {
                        self.parsed += 1;
                        self.narinfo(info, &object, metadata.modified);
                    }
                    _ => {
                        let is_other = is_of_other_store_dir(&text, store_dir);
                        self.other_store_dir += usize::from(is_other);
                        self.unparsed_narinfo(hash, &text, object, metadata.modified);
                    }
                }
            }
            CachePath::Nar(_) => {
                self.nars.insert(object.path.clone(), to_place(self.inventory.shared.len()));
                self.inventory.shared.push(object);
            }
            CachePath::Log(derivation) => {
                self.logs.insert(derivation.clone(), object);
            }
            CachePath::Listing(hash) => {
                let to = Some(CachePath::NarInfo(*hash));
                self.linked.push(Linked { object, to });
            }
            _ => {
                let to = content.and_then(|text| link(&text));
                self.linked.push(Linked { object, to });
            }
        }
    }

    fn narinfo(&mut self, info: NarInfo, object: &HeldObject, uploaded: SystemTime) {
        let references = info.references.iter().map(StorePath::hash);
        let references = references.filter(|hash| *hash != info.store_path.hash()).collect();
        let nar = info.named_nar().map(CachePath::Nar);
        let mirrored = info.upstream().is_some();
        self.paths.push(Read {
            nar,
            deriver: info.deriver,
            references,
            held: HeldPath {
                store_path: info.store_path,
                nar: None,
                log: None,
                references: Box::default(),
                sides: Vec::new(),
                size: object.size,
                nar_size: info.nar_size,
                mirrored,
                uploaded,
                used: object.used,
            },
        });
    }

    /// A narinfo that does not parse is a path as far as it names anything: it is served, and some
    /// version of Nix may accept it.
    fn unparsed_narinfo(
        &mut self,
        hash: StorePathHash,
        text: &[u8],
        object: HeldObject,
        uploaded: SystemTime,
    ) {
        let named = LenientNarInfo::read(text);
        if named.is_empty() {
            self.inventory.unparsed.garbage += 1;
            self.inventory.loose.push(object);
            return;
        }
        self.inventory.unparsed.lenient += 1;
        let mut nars = named.nars;
        let nar = nars.pop().map(CachePath::Nar);
        self.claims.extend(nars.into_iter().map(CachePath::Nar));
        let name = named.store_path.filter(|path| path.hash() == hash);
        let name = name.unwrap_or_else(|| {
            format!("{hash}-{UNPARSED}").parse().expect("a hash part and a name are a store path")
        });
        self.paths.push(Read {
            nar,
            deriver: named.deriver,
            references: named.references.into_iter().filter(|other| *other != hash).collect(),
            held: HeldPath {
                store_path: name,
                nar: None,
                log: None,
                references: Box::default(),
                sides: Vec::new(),
                size: object.size,
                nar_size: 0,
                mirrored: false,
                uploaded,
                used: object.used,
            },
        });
    }

    fn finish(mut self) -> Inventory {
        let inventory = &mut self.inventory;
        inventory.places = places(self.paths.iter().map(|path| &path.held.store_path));
        let mut logs: HashMap<StorePath, u32> = HashMap::new();
        for Read { mut held, nar, deriver, references } in self.paths {
            held.nar = nar.and_then(|nar| self.nars.get(&nar).copied());
            held.references =
                references.iter().filter_map(|hash| inventory.places.get(hash).copied()).collect();
            if let Some(deriver) = deriver {
                if let Some(log) = self.logs.remove(&deriver) {
                    logs.insert(deriver.clone(), to_place(inventory.shared.len()));
                    inventory.shared.push(log);
                }
                held.log = logs.get(&deriver).copied();
            }
            inventory.paths.push(held);
        }
        inventory.claimed =
            self.claims.iter().filter_map(|nar| self.nars.get(nar).copied()).collect();
        inventory.loose.extend(self.logs.into_values());
        for Linked { object, to } in self.linked {
            let place = match &to {
                Some(CachePath::NarInfo(hash)) => inventory.places.get(hash),
                Some(nar) => self.nars.get(nar),
                None => None,
            };
            match (place, to) {
                (Some(&at), Some(CachePath::NarInfo(_))) => {
                    let path = &mut inventory.paths[at as usize];
                    path.size += object.size;
                    path.used = path.used.max(object.used);
                    path.sides.push(object.path);
                }
                (Some(&at), _) => {
                    let nar = &mut inventory.shared[at as usize];
                    nar.size += object.size;
                    nar.used = nar.used.max(object.used);
                    nar.sides.push(object.path);
                }
                (None, _) => inventory.loose.push(object),
            }
        }
        self.inventory
    }
}

/// Whether a narinfo is of a path in another store dir.
fn is_of_other_store_dir(text: &[u8], store_dir: &StoreDir) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let path = lines.find_map(|line| line.strip_prefix(b"StorePath: "));
    path.is_some_and(|path| !path.starts_with(store_dir.as_str().as_bytes()))
}

/// The objects that a realisation, a build trace or a link to debug symbols belongs to.
fn link(text: &[u8]) -> Option<CachePath> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Link {
        /// The base name of a store path (realisations, build traces).
        out_path: Option<String>,
        /// A NAR, relative to `debuginfo/`.
        archive: Option<String>,
    }
    let link: Link = serde_json::from_slice(text).ok()?;
    match link {
        Link { out_path: Some(path), .. } => {
            let path = path.rsplit('/').next()?.parse::<StorePath>().ok()?;
            Some(CachePath::NarInfo(path.hash()))
        }
        Link { archive: Some(nar), .. } => nar.strip_prefix("../")?.parse().ok(),
        Link { .. } => None,
    }
}

/// Where each path is.
fn places<'a>(paths: impl Iterator<Item = &'a StorePath>) -> HashMap<StorePathHash, u32> {
    paths.enumerate().map(|(at, path)| (path.hash(), to_place(at))).collect()
}

fn to_place(index: usize) -> u32 {
    u32::try_from(index).expect("fewer objects than u32 has numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_a_path_or_a_nar() {
        let path = "8ha1dhmx807czjczmwy078s4r9s254il-hello";
        let nar = format!("nar/{:0>52}.nar.xz", 1);
        let narinfo = Some("8ha1dhmx807czjczmwy078s4r9s254il.narinfo".parse().unwrap());
        for (text, to) in [
            (format!("{{\"id\": \"x\", \"outPath\": \"{path}\"}}"), narinfo.clone()),
            (format!("{{\"outPath\": \"/nix/store/{path}\", \"signatures\": []}}"), narinfo),
            (format!("{{\"archive\": \"../{nar}\", \"member\": \"x\"}}"), nar.parse().ok()),
            (format!("{{\"archive\": \"{nar}\"}}"), None),
            ("{\"archive\": \"../../x\", \"member\": \"x\"}".to_owned(), None),
            ("{\"outPath\": \"hello\"}".to_owned(), None),
            ("{}".to_owned(), None),
            ("[1".to_owned(), None),
        ] {
            assert_eq!(link(text.as_bytes()), to, "{text}");
        }
    }
}
